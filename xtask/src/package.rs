//! The packages as they would be published: what is in them, how large they are, and a crate that uses them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::tidy::{metadata, root};

/// The registry refuses 10 MB.
const MAX_BYTES: u64 = 9_000_000;

/// Files that every package has.
const FILES: &[&str] = &["Cargo.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// Fields that every manifest has.
const FIELDS: &[&str] = &["description", "license", "readme", "rust_version", "keywords", "categories"];

/// Check the packages of all published crates
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also build examples/downstream against them
    #[arg(long)]
    pub(crate) downstream: bool,
    /// Also build each package by itself, which takes long
    #[arg(long)]
    pub(crate) verify: bool,
}

/// A package and its archive.
struct Package {
    name: String,
    /// `name-version`, also the folder inside the archive.
    stem: String,
    archive: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let sh = Shell::new()?;
    sh.change_dir(root());
    let (packages, target) = metadata(&root())?;
    let folder = target.join("package");

    let mut wrong = Vec::new();
    let mut published = Vec::new();
    for package in &packages {
        // `publish = false` is an empty list of registries.
        if package["publish"].is_array() {
            continue;
        }
        let field = |name: &str| package[name].as_str().unwrap_or_default().to_owned();
        let (name, stem) = (field("name"), format!("{}-{}", field("name"), field("version")));
        for key in FIELDS {
            let value = &package[key];
            if value.is_null() || value == "" || value.as_array().is_some_and(Vec::is_empty) {
                wrong.push(format!("{name} has no {key} in its manifest"));
            }
        }
        published.push(Package { name, archive: folder.join(format!("{stem}.crate")), stem });
    }

    let names = published.iter().flat_map(|it| ["-p", &it.name]);
    let verify = (!args.verify).then_some("--no-verify");
    // Whatever is committed or not: continuous integration has a clean tree.
    cmd!(sh, "cargo package --quiet {verify...} --offline --allow-dirty {names...}").run()?;
    for package in &published {
        contents(&sh, package, &mut wrong)?;
    }
    if !wrong.is_empty() {
        bail!("{} faults of packages:\n  {}", wrong.len(), wrong.join("\n  "));
    }
    println!("{} packages", published.len());
    if args.downstream {
        downstream(&sh, &folder, &published)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn contents(sh: &Shell, package: &Package, wrong: &mut Vec<String>) -> Result<()> {
    let Package { name, stem, archive } = package;
    let bytes = fs::metadata(archive).with_context(|| format!("no package {}", archive.display()))?.len();
    if bytes > MAX_BYTES {
        wrong.push(format!("{name} has {bytes} bytes, expected at most {MAX_BYTES}"));
    }
    let listed = cmd!(sh, "tar tzf {archive}").quiet().read()?;
    let listed: BTreeSet<&str> = listed.lines().collect();
    for file in FILES.iter().filter(|it| !listed.contains(&*format!("{stem}/{it}"))) {
        wrong.push(format!("{name} does not hold {file}"));
    }
    Ok(())
}

/// Builds and runs examples/downstream against the unpacked packages, with this workspace's versions of all else.
fn downstream(sh: &Shell, folder: &Path, published: &[Package]) -> Result<()> {
    let (unpacked, user) = (folder.join("unpacked"), folder.join("downstream"));
    for old in [&unpacked, &user] {
        sh.remove_path(old)?;
    }
    sh.create_dir(&unpacked)?;
    sh.create_dir(user.join("src"))?;
    let mut patches = String::from("\n[patch.crates-io]\n");
    for Package { name, stem, archive } in published {
        // Times of now: those in packages never change, so that cargo would take an older build for this one.
        cmd!(sh, "tar xzmf {archive} -C {unpacked}").quiet().run()?;
        let path = unpacked.join(stem);
        patches += &format!("{name} = {{ path = {:?} }}\n", path.display().to_string());
    }
    let from = root().join("examples/downstream");
    let manifest = fs::read_to_string(from.join("Cargo.toml"))? + &patches;
    sh.write_file(user.join("Cargo.toml"), manifest)?;
    sh.copy_file(from.join("src/main.rs"), user.join("src"))?;
    sh.copy_file(root().join("Cargo.lock"), &user)?;

    // The same target folder, so that third-party crates are not built again.
    let target = folder.parent().unwrap_or(folder);
    let _target = sh.push_env("CARGO_TARGET_DIR", target);
    let manifest = user.join("Cargo.toml");
    cmd!(sh, "cargo run --quiet --offline --manifest-path {manifest}").run()?;
    Ok(())
}
