//! Files to write: checked before the work, complete or absent after it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ddt_files::FileSystem;

use crate::error::{Context, Result, invalid};

/// A path that can be written, checked before minutes of work.
///
/// A symbolic link is followed, so that the file behind it is replaced and not the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFile {
    path: PathBuf,
    target: PathBuf,
}

impl OutputFile {
    /// Checks a path; nothing is created but its missing folders, if the path is relative and `make_folders` asks
    /// for them.
    ///
    /// # Errors
    /// A path that names no file, ends in a slash, or is something else than a regular file (a folder, a device, a
    /// FIFO); a folder that is missing or cannot be written; another ending than `endings` has, if it has any.
    pub fn new(path: &Path, endings: &[&str]) -> Result<Self> {
        let shown = path.display();
        let ends_in_slash = path.as_os_str().as_encoded_bytes().last().is_some_and(|it| b"/\\".contains(it));
        if path.file_name().is_none() || ends_in_slash || path.is_dir() {
            return invalid(format!(
                "expected the path of a file to write, got the folder {shown:?}; add a file name"
            ));
        }
        let ending = path.extension().and_then(|it| it.to_str()).unwrap_or_default().to_lowercase();
        if !endings.is_empty() && !endings.contains(&ending.as_str()) {
            return invalid(format!("expected a path that ends in .{}, got {shown}", endings.join(" or .")));
        }
        let target = match path.canonicalize() {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
                return invalid(format!("cannot write {shown}: it is a link to a file that does not exist"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error).context(format!("cannot write {shown}")),
        };
        if let Ok(metadata) = target.metadata()
            && !metadata.is_file()
        {
            return invalid(format!(
                "cannot write {shown}: expected a regular file, got a device, pipe or socket"
            ));
        }
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        match fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return invalid(format!("cannot write {shown}: {} is not a folder", folder.display())),
            Err(error) => {
                return Err(error)
                    .context(format!("cannot write {shown}: create the folder {} first", folder.display()));
            }
        }
        tempfile::tempfile_in(folder).map(drop).context(format!(
            "cannot write {shown}: the folder {} is not writable; choose another path",
            folder.display()
        ))?;
        Ok(Self { path: path.to_owned(), target })
    }

    /// [`new`](Self::new) for a program's own default path, whose folder is made if it is missing.
    ///
    /// # Errors
    /// As [`new`](Self::new), or if the folder cannot be made.
    pub fn with_folder(path: &Path, endings: &[&str]) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .context(format!("cannot make the folder {}; name another path", folder.display()))?;
        }
        Self::new(path, endings)
    }

    /// The path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path to write to: behind a link, the file that it leads to.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes the file; an earlier one is replaced in one step.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when the disk is full; then the file is as it was before.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        self.write_on(&FileSystem::default(), bytes)
    }

    /// [`write`](Self::write) through another file layer than the real disk's.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_on(&self, system: &FileSystem, bytes: &[u8]) -> Result<()> {
        Self::new(&self.path, &[])?;
        Ok(system.atomic_write(&self.target, |file| file.write_all(bytes))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_picture_survives_every_fault_of_the_disk() {
        use ddt_files::faults::{Fault, Job, Outcome, sweep};
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        fs::write(place.join("cats.png"), "old").unwrap();
        let picture = ddt_picture::Rgb8::new(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let png = ddt_picture::encode_png(&picture, &[("ddt", "{}")]).unwrap();
        let run = |system: &FileSystem, place: &Path| -> Outcome {
            Ok(OutputFile::new(&place.join("cats.png"), &["png"])?.write_on(system, &png)?)
        };
        let swept = sweep(&place, &Fault::ALL, &Job { run: &run, counts: &|_| true }).unwrap();
        assert_eq!(swept.changes, 5, "{swept}");
    }

    #[test]
    fn writes_and_replaces_whole_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.PNG");
        let file = OutputFile::new(&path, &["png"]).unwrap();
        assert!(names_in(folder.path()).is_empty());
        file.write(b"first, and longer").unwrap();
        file.write(b"second").unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), names_in(folder.path())),
            (b"second".to_vec(), vec!["out.PNG".to_owned()])
        );
        let deep = folder.path().join("a/b/c.png");
        OutputFile::with_folder(&deep, &[]).unwrap().write(b"x").unwrap();
        assert_eq!(fs::read(&deep).unwrap(), b"x");
    }

    #[test]
    fn refusals_name_the_path_and_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"kept").unwrap();
        for (path, expected) in [
            (folder.path().join("missing/out.png"), "create the folder"),
            (file.join("out.png"), "file"),
            (folder.path().to_owned(), "add a file name"),
            (folder.path().join("new/"), "add a file name"),
            (folder.path().join("x.jpg"), "ends in .png"),
            (PathBuf::new(), "add a file name"),
        ] {
            let message = format!("{:?}", OutputFile::new(&path, &["png"]).unwrap_err());
            assert!(message.contains(expected) && message.contains(&path.display().to_string()), "{message}");
        }
        assert_eq!(
            (names_in(folder.path()), fs::read(&file).unwrap()),
            (vec!["file".to_owned()], b"kept".to_vec())
        );
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_replaced() {
        use std::os::unix::{fs::symlink, net::UnixListener};
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let _socket = UnixListener::bind(at("socket.png")).unwrap();
        symlink("/dev/null", at("null.png")).unwrap();
        symlink(at("nowhere"), at("broken.png")).unwrap();
        for path in [PathBuf::from("/dev/null"), at("socket.png"), at("null.png"), at("broken.png")] {
            let message = OutputFile::new(&path, &[]).unwrap_err().to_string();
            assert!(message.contains("regular file") || message.contains("does not exist"), "{message}");
        }
        fs::write(at("real.png"), b"old").unwrap();
        symlink(at("real.png"), at("link.png")).unwrap();
        OutputFile::new(&at("link.png"), &["png"]).unwrap().write(b"new").unwrap();
        assert!(at("link.png").is_symlink());
        assert_eq!(fs::read(at("real.png")).unwrap(), b"new");
    }
}
