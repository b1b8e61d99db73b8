//! Rules of the tree that compilers do not check; also run as a test.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

/// Which workspace crate may depend on which. A new edge is a decision: it belongs here and into
/// docs/ARCHITECTURE.md.
const EDGES: &[(&str, &[&str])] = &[
    ("ddt-sharing", &[]),
    ("ddt-flow", &[]),
    ("ddt-analysis", &["ddt-flow"]),
    ("ddt-kernels", &[]),
    ("ddt-files", &[]),
    ("ddt-blocks", &["ddt-kernels"]),
    ("ddt-model", &["ddt-blocks", "ddt-files", "ddt-flow", "ddt-kernels", "ddt-sharing"]),
    ("ddt-metrics", &[]),
    ("ddt-data", &[]),
    ("ddt-adapters", &["ddt-files", "ddt-kernels"]),
    (
        "ddt-cuda",
        &["ddt-adapters", "ddt-blocks", "ddt-files", "ddt-flow", "ddt-kernels", "ddt-model", "ddt-sharing"],
    ),
    ("ddt-train", &["ddt-blocks", "ddt-data", "ddt-files", "ddt-flow", "ddt-model"]),
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
            "ddt-data",
            "ddt-demo",
            "ddt-files",
            "ddt-flow",
            "ddt-hub",
            "ddt-kernels",
            "ddt-metrics",
            "ddt-model",
            "ddt-picture",
            "ddt-sharing",
            "ddt-train",
        ],
    ),
    ("ddt-cli", &["ddt-diffusion", "ddt-fetch", "ddt-plot"]),
];

/// Packages on top of the libraries: nothing depends on them, they may depend on anything.
const TOPS: &[&str] = &["ddt-examples", "ddt-first-picture", "ddt-benches", "ddt-parity", "xtask"];

/// Crates that must not see candle.
const WITHOUT_CANDLE: &[&str] = &["ddt-data", "ddt-metrics", "ddt-sharing"];

const MAX_LINES: usize = 500;
const DUMPING_GROUNDS: &[&str] = &["utils.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs", "ops.rs"];

pub(crate) fn run() -> Result<ExitCode> {
    check(&root())?;
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
    sources(root, &mut wrong)?;
    edges(root, &mut wrong)?;
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{} rules are broken:\n  {}", wrong.len(), wrong.join("\n  "))
}

fn sources(root: &Path, wrong: &mut Vec<String>) -> Result<()> {
    for folder in ["crates", "examples", "benches", "xtask"] {
        for path in rust_files(&root.join(folder))? {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let shown = path.strip_prefix(root).unwrap_or(&path).display();
            let lines = text.lines().count();
            if lines > MAX_LINES {
                wrong.push(format!("{shown} has {lines} lines, at most {MAX_LINES} hold one idea"));
            }
            if !text.starts_with("//!") {
                wrong.push(format!("{shown} does not begin with a line of //! that says what it is"));
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

fn edges(root: &Path, wrong: &mut Vec<String>) -> Result<()> {
    let sh = Shell::new()?;
    sh.change_dir(root);
    let json = cmd!(sh, "cargo metadata --format-version 1 --no-deps --offline").quiet().read()?;
    let metadata: serde_json::Value = serde_json::from_str(&json)?;
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let used: BTreeSet<&str> =
            dependencies.filter(|it| it["kind"].is_null()).filter_map(|it| it["name"].as_str()).collect();
        if TOPS.contains(&name) {
            continue;
        }
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!("package {name} stands in no table of xtask/src/tidy.rs"));
            continue;
        };
        for used in used.iter().filter(|it| it.starts_with("ddt") && !allowed.contains(it)) {
            wrong.push(format!("{name} depends on {used}, which xtask/src/tidy.rs does not allow"));
        }
        if WITHOUT_CANDLE.contains(&name) && used.iter().any(|it| it.starts_with("candle")) {
            wrong.push(format!("{name} depends on candle"));
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
