//! Corpora: seeds, which a program writes; inputs found, in the target folder; and a small choice of them, committed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use xshell::{Shell, cmd};

use super::Folders;

/// Inputs of a target that are committed, in bytes before they are compressed.
const MOST: u64 = 128 << 10;

impl Folders {
    pub(super) fn corpus(&self, name: &str) -> PathBuf {
        self.inputs.join(name).join("corpus")
    }

    fn packed(&self, name: &str) -> PathBuf {
        self.sources.join("corpus").join(format!("{name}.tar.gz"))
    }

    /// Writes the seeds of a target, and returns their folder.
    pub(super) fn seeds(&self, name: &str) -> Result<PathBuf> {
        let (sh, folder, program) =
            (Shell::new()?, self.inputs.join(name).join("seeds"), self.programs.join("seeds"));
        sh.remove_path(&folder)?;
        cmd!(sh, "{program} {name} {folder}").quiet().run()?;
        Ok(folder)
    }

    /// Adds the committed inputs to the corpus of a target.
    pub(super) fn unpack(&self, name: &str) -> Result<()> {
        let (sh, corpus, packed) = (Shell::new()?, self.corpus(name), self.packed(name));
        sh.create_dir(&corpus)?;
        if packed.is_file() {
            cmd!(sh, "tar xzf {packed} -C {corpus}").quiet().run()?;
        }
        Ok(())
    }

    /// Chooses inputs that cover what all do, the smallest of them, and packs them.
    pub(super) fn minimise(&self, name: &str) -> Result<()> {
        let sh = Shell::new()?;
        let (seeds, minimal) = (self.seeds(name)?, self.inputs.join(name).join("minimal"));
        self.unpack(name)?;
        sh.remove_path(&minimal)?;
        sh.create_dir(&minimal)?;
        let merged =
            self.start(name, &["-merge=1".to_owned()], &[minimal.clone(), self.corpus(name), seeds])?;
        ensure!(merged.succeeded, "{name}: cannot choose inputs:\n{}", merged.log);
        let (mut files, mut bytes) = (by_size(&minimal)?, 0);
        files.retain(|(size, _)| {
            bytes += size;
            bytes <= MOST
        });
        let mut files: Vec<String> = files.into_iter().map(|it| it.1).collect();
        files.sort();
        let count = files.len();
        let packed = self.packed(name);
        sh.create_dir(self.sources.join("corpus"))?;
        // The same inputs make the same bytes.
        let gzip = "gzip -9n";
        let plain = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=644"];
        cmd!(sh, "tar {plain...} -I {gzip} -cf {packed} -C {minimal} {files...}").quiet().run()?;
        println!("{name}: {count} inputs, {} bytes packed", fs::metadata(&packed)?.len());
        Ok(())
    }
}

/// Sizes and names of the files of a folder, the smallest first.
fn by_size(folder: &Path) -> Result<Vec<(u64, String)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.file_name().to_string_lossy().into_owned()));
    }
    files.sort();
    Ok(files)
}
