//! The program `ddt` as an archive to download: with licences, completions and a checksum.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use ddt_files::sha256_file;
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::tidy::root;

/// Shells and the names that their completions have.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "ddt.bash"),
    ("zsh", "_ddt"),
    ("fish", "ddt.fish"),
    ("elvish", "ddt.elv"),
    ("powershell", "_ddt.ps1"),
];

const LICENCES: &str = "THIRD-PARTY-LICENCES.txt";

/// Leaves `target/dist/ddt-VERSION-HOST.tar.gz` and its SHA-256.
pub(crate) fn run() -> Result<ExitCode> {
    let sh = Shell::new()?;
    sh.change_dir(root());
    // The instructions are chosen at run time: a build for this machine's would not start on others.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        let flags = std::env::var(name).unwrap_or_default();
        if flags.contains("target-cpu") {
            bail!("expected a portable build, got {name}={flags:?}; unset it");
        }
    }
    cmd!(sh, "cargo build --release --locked -p ddt-cli --bin ddt").run()?;
    let metadata = cmd!(sh, "cargo metadata --format-version 1 --locked").quiet().read()?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let target = PathBuf::from(metadata["target_directory"].as_str().context("a target directory")?);
    let program = target.join("release").join(format!("ddt{}", std::env::consts::EXE_SUFFIX));

    let version = cmd!(sh, "{program} --version").quiet().read()?;
    let version = version.split(' ').nth(1).context("expected a version from ddt --version")?;
    let name = format!("ddt-{version}-{}", host(&sh)?);
    let dist = target.join("dist");
    let folder = dist.join(&name);
    sh.remove_path(&folder)?;
    sh.create_dir(folder.join("completions"))?;
    for file in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        sh.copy_file(file, &folder)?;
    }
    // The README's links lead there.
    cmd!(sh, "cp -R docs {folder}").run()?;
    sh.copy_file(&program, &folder)?;
    for (shell, file) in COMPLETIONS {
        let text = cmd!(sh, "{program} completions {shell}").quiet().read()?;
        sh.write_file(folder.join("completions").join(file), text)?;
    }
    sh.write_file(folder.join(LICENCES), licences(&sh, &metadata)?)?;

    let archive = dist.join(format!("{name}.tar.gz"));
    cmd!(sh, "tar -C {dist} -czf {archive} {name}").run()?;
    let sum = format!("{}  {name}.tar.gz\n", sha256_file(&archive)?);
    sh.write_file(dist.join(format!("{name}.tar.gz.sha256")), &sum)?;
    print!("{sum}");
    Ok(ExitCode::SUCCESS)
}

fn host(sh: &Shell) -> Result<String> {
    let version = cmd!(sh, "rustc -vV").quiet().read()?;
    let host = version.lines().find_map(|it| it.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV does not say its host")
}

/// Name, version and licence of everything in the program, then each text once.
fn licences(sh: &Shell, metadata: &Value) -> Result<String> {
    let tree = cmd!(sh, "cargo tree -p ddt-cli -e normal --prefix none --locked").quiet().read()?;
    // `name vVERSION (path)`
    let linked: BTreeSet<String> =
        tree.lines().map(|it| it.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    let (mut list, mut texts) = (String::new(), BTreeSet::new());
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let field = |name: &str| package[name].as_str().unwrap_or_default();
        let name = format!("{} v{}", field("name"), field("version"));
        // This project's own are beside this file.
        if !linked.contains(&name) || package["source"].is_null() {
            continue;
        }
        list += &format!("{name}: {}\n", field("license"));
        let folder = Path::new(field("manifest_path")).parent().unwrap_or(Path::new("."));
        for file in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = file?.path();
            let stem = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
            let is_licence =
                ["LICENSE", "LICENCE", "COPYING", "NOTICE"].iter().any(|it| stem.starts_with(it));
            if is_licence && path.is_file() {
                texts.insert(fs::read_to_string(&path)?.trim().to_owned());
            }
        }
    }
    let rule = format!("\n\n{}\n\n", "-".repeat(80));
    Ok(list + &rule + &Vec::from_iter(texts).join(&rule) + "\n")
}
