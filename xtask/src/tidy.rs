//! Rules of the tree that compilers do not check; also run as a test.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use xshell::{Shell, cmd};

use modules::Modules;

mod modules;
mod third_party;
mod unsafe_code;

/// Which workspace crate may depend on which. A new edge is a decision: it belongs here and into
/// docs/ARCHITECTURE.md.
const EDGES: &[(&str, &[&str])] = &[
    ("ddt-sharing", &[]),
    ("ddt-flow", &[]),
    ("ddt-kernels", &[]),
    ("ddt-files", &[]),
    ("ddt-blocks", &["ddt-kernels"]),
    ("ddt-model", &["ddt-blocks", "ddt-files", "ddt-flow", "ddt-kernels", "ddt-sharing"]),
    ("ddt-metrics", &[]),
    ("ddt-data", &["ddt-picture"]),
    ("ddt-dist", &["ddt-kernels"]),
    ("ddt-adapters", &["ddt-files", "ddt-kernels"]),
    ("ddt-cuda", &["ddt-adapters", "ddt-blocks", "ddt-flow", "ddt-kernels", "ddt-model", "ddt-sharing"]),
    ("ddt-train", &["ddt-blocks", "ddt-data", "ddt-dist", "ddt-files", "ddt-flow", "ddt-model"]),
    ("ddt-picture", &[]),
    ("ddt-plot", &[]),
    ("ddt-hub", &[]),
    ("ddt-fetch", &["ddt-files", "ddt-hub"]),
    ("ddt-demo-a", &[]),
    ("ddt-demo-b", &[]),
    ("ddt-demo-c", &[]),
    ("ddt-demo", &["ddt-demo-a", "ddt-demo-b", "ddt-demo-c"]),
    (
        "ddt-diffusion",
        &[
            "ddt-adapters",
            "ddt-blocks",
            "ddt-cuda",
            "ddt-demo",
            "ddt-files",
            "ddt-flow",
            "ddt-hub",
            "ddt-kernels",
            "ddt-model",
            "ddt-picture",
            "ddt-sharing",
        ],
    ),
    ("ddt-study", &["ddt-data", "ddt-demo", "ddt-diffusion", "ddt-metrics", "ddt-plot", "ddt-train"]),
    (
        "ddt-cli",
        &[
            "ddt-data",
            "ddt-diffusion",
            "ddt-dist",
            "ddt-fetch",
            "ddt-metrics",
            "ddt-plot",
            "ddt-study",
            "ddt-train",
        ],
    ),
];

/// Packages on top of the libraries: nothing depends on them, they may depend on anything.
const TOPS: &[&str] =
    &["ddt-first-picture", "ddt-library-examples", "ddt-benches", "ddt-parity", "ddt-system-tests", "xtask"];

/// Crates that must not see candle.
const WITHOUT_CANDLE: &[&str] = &["ddt-data", "ddt-dist", "ddt-metrics", "ddt-sharing"];

const MAX_LINES: usize = 500;
const DUMPING_GROUNDS: &[&str] = &["utils.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs", "ops.rs"];

pub(crate) fn run(write: bool) -> Result<ExitCode> {
    let root = root();
    if write {
        std::fs::write(
            root.join(unsafe_code::PAGE),
            unsafe_code::page(&root, &every_source(&root)?, &mut Vec::new())?,
        )?;
    }
    check(&root)?;
    println!("tidy");
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Checks everything and reports everything that is wrong.
pub(crate) fn check(root: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    let files = every_source(root)?;
    sources(root, &files, &mut wrong)?;
    let page = unsafe_code::page(root, &files, &mut wrong)?;
    if std::fs::read_to_string(root.join(unsafe_code::PAGE)).ok().is_none_or(|it| it != page) {
        wrong.push(format!(
            "{} does not list all unsafe code: run cargo xtask tidy --write",
            unsafe_code::PAGE
        ));
    }
    third_party::check(root, &mut wrong)?;
    let (packages, _) = metadata(root)?;
    tables(&packages, &mut wrong);
    for package in &packages {
        dependencies(package, &mut wrong);
        circles(root, package, &mut wrong)?;
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{} rules are broken:\n  {}", wrong.len(), wrong.join("\n  "))
}

/// All Rust files of the repository.
fn every_source(root: &Path) -> Result<Vec<PathBuf>> {
    let folders = ["crates", "examples", "benches", "fuzz", "xtask"];
    let files = folders.iter().map(|it| rust_files(&root.join(it))).collect::<Result<Vec<_>>>()?;
    Ok(files.concat())
}

fn sources(root: &Path, files: &[PathBuf], wrong: &mut Vec<String>) -> Result<()> {
    for path in files {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let shown = path.strip_prefix(root).unwrap_or(path).display();
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{shown} has {lines} lines, at most {MAX_LINES} hold one idea"));
        }
        if !text.starts_with("//!") && !text.starts_with("#![doc = include_str!(\"../README.md\")]") {
            wrong.push(format!("{shown} does not begin with //! or its README, which say what it is"));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if DUMPING_GROUNDS.contains(&name.as_ref()) {
            wrong.push(format!("{shown} is a name for anything; name the idea"));
        }
        for (i, line) in text.lines().enumerate() {
            if line.ends_with(char::is_whitespace) {
                wrong.push(format!("{shown}:{} ends in white space", i + 1));
            }
            let attribute = line.trim_start();
            if attribute.starts_with("#[ignore") || attribute.starts_with("#[should_panic") {
                wrong.push(format!("{shown}:{} ignores a test or expects a panic", i + 1));
            }
        }
    }
    Ok(())
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The packages of the workspace, as cargo describes them, and the folder that it builds to.
pub(crate) fn metadata(root: &Path) -> Result<(Vec<Value>, PathBuf)> {
    let sh = Shell::new()?;
    sh.change_dir(root);
    let json = cmd!(sh, "cargo metadata --format-version 1 --no-deps --offline").quiet().read()?;
    let mut metadata: Value = serde_json::from_str(&json)?;
    match (metadata["packages"].take(), metadata["target_directory"].as_str()) {
        (Value::Array(packages), Some(target)) => Ok((packages, target.into())),
        (other, target) => {
            bail!("expected packages and a target directory of cargo metadata, got {other}, {target:?}")
        }
    }
}

/// The packages in a table of this file must exist, once.
fn tables(packages: &[Value], wrong: &mut Vec<String>) {
    let known: BTreeSet<&str> = packages.iter().map(name).collect();
    let mut listed = BTreeSet::new();
    for name in EDGES.iter().map(|(name, _)| name).chain(TOPS) {
        if !known.contains(name) {
            wrong.push(format!("package {name} of xtask/src/tidy.rs does not exist"));
        }
        if !listed.insert(name) {
            wrong.push(format!("package {name} is twice in the tables of xtask/src/tidy.rs"));
        }
    }
}

fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap_or_default()
}

fn dependencies(package: &Value, wrong: &mut Vec<String>) {
    let package_name = name(package);
    let dependencies: Vec<&Value> = package["dependencies"].as_array().into_iter().flatten().collect();
    let of_kind = |kind: Value| {
        let kept = dependencies.iter().filter(move |it| it["kind"] == kind);
        kept.map(|it| (name(it), it["optional"] == true, &it["features"]))
    };
    let used: BTreeSet<&str> = of_kind(Value::Null).map(|it| it.0).collect();
    for (used, _, features) in of_kind("dev".into()) {
        if of_kind(Value::Null).any(|it| it == (used, false, features)) {
            wrong.push(format!("{package_name} depends on {used} twice, for itself and for its tests"));
        }
    }
    if TOPS.contains(&package_name) {
        return;
    }
    let Some((_, allowed)) = EDGES.iter().find(|it| it.0 == package_name) else {
        wrong.push(format!("package {package_name} is in no table of xtask/src/tidy.rs"));
        return;
    };
    let ours: BTreeSet<&str> = used.iter().copied().filter(|it| it.starts_with("ddt")).collect();
    for used in ours.iter().filter(|it| !allowed.contains(it)) {
        wrong.push(format!("{package_name} depends on {used}, which xtask/src/tidy.rs does not allow"));
    }
    for (at, edge) in allowed.iter().enumerate() {
        if !ours.contains(edge) || allowed[..at].contains(edge) {
            wrong.push(format!("{package_name} -> {edge} is in xtask/src/tidy.rs without need, or twice"));
        }
    }
    if WITHOUT_CANDLE.contains(&package_name) && used.iter().any(|it| it.starts_with("candle")) {
        wrong.push(format!("{package_name} depends on candle"));
    }
}

fn circles(root: &Path, package: &Value, wrong: &mut Vec<String>) -> Result<()> {
    for target in package["targets"].as_array().into_iter().flatten() {
        let crate_root = Path::new(target["src_path"].as_str().context("a target without a file")?);
        for circle in Modules::read(crate_root)?.circles() {
            let files: Vec<&Path> = circle.iter().map(|it| it.strip_prefix(root).unwrap_or(it)).collect();
            let circle = files.iter().map(|it| it.display().to_string()).collect::<Vec<_>>().join(" -> ");
            wrong.push(format!(
                "modules use each other: {circle}; move what both use into a module of its own"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        super::check(&super::root()).unwrap();
    }
}
