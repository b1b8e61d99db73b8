//! Licences and sources of every crate that this workspace compiles: the rules of `deny.toml` that need no database.
//!
//! `cargo deny` knows more (advisories, crates of other platforms), and takes minutes to compile. This takes a second.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;
use xshell::{Shell, cmd};

/// Sources that packages may have; packages of this repository have none.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub(super) fn check(root: &Path, wrong: &mut Vec<String>) -> Result<()> {
    let rules = fs::read_to_string(root.join("deny.toml"))?;
    let allowed = rules
        .split_once("allow = [")
        .and_then(|it| it.1.split_once(']'))
        .context("deny.toml allows nothing")?
        .0;
    let allowed: Vec<&str> = allowed.split('"').skip(1).step_by(2).collect();
    let sh = Shell::new()?;
    sh.change_dir(root);
    let rustc = cmd!(sh, "rustc -vV").quiet().read()?;
    let host =
        rustc.lines().find_map(|it| it.strip_prefix("host: ")).context("rustc -vV does not say its host")?;
    let json = cmd!(sh, "cargo metadata --format-version 1 --locked --offline --filter-platform {host}")
        .quiet()
        .read()?;
    let metadata: Value = serde_json::from_str(&json)?;
    let packages = metadata["packages"].as_array().context("packages of cargo metadata")?;
    for package in packages {
        let field = |name: &str| package[name].as_str().unwrap_or_default();
        let (name, source, licence) = (field("name"), field("source"), field("license"));
        if !source.is_empty() && source != REGISTRY {
            wrong.push(format!("{name} comes from {source}, expected the registry"));
        }
        if !accepts(licence, &allowed) {
            wrong.push(format!("{name} has the licence {licence:?}, which deny.toml does not allow"));
        }
    }
    Ok(())
}

/// Whether the allowed licences satisfy an SPDX expression; older manifests write a slash for OR.
fn accepts(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any(&mut rest, allowed) && rest.is_empty()
}

fn any(rest: &mut &[&str], allowed: &[&str]) -> bool {
    let mut found = all(rest, allowed);
    while skip(rest, "OR") {
        found |= all(rest, allowed);
    }
    found
}

fn all(rest: &mut &[&str], allowed: &[&str]) -> bool {
    let mut found = one(rest, allowed);
    while skip(rest, "AND") {
        found &= one(rest, allowed);
    }
    found
}

fn one(rest: &mut &[&str], allowed: &[&str]) -> bool {
    if skip(rest, "(") {
        return any(rest, allowed) & skip(rest, ")");
    }
    let Some((licence, after)) = rest.split_first() else { return false };
    *rest = after;
    match *rest {
        ["WITH", exception, ..] => {
            let whole = format!("{licence} WITH {exception}");
            *rest = &rest[2..];
            allowed.contains(&whole.as_str())
        }
        _ => allowed.contains(licence),
    }
}

fn skip(rest: &mut &[&str], word: &str) -> bool {
    let is_next = rest.first() == Some(&word);
    *rest = &rest[usize::from(is_next)..];
    is_next
}

#[cfg(test)]
mod tests {
    use super::accepts;

    #[test]
    fn expressions_are_understood() {
        let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "ISC"];
        for licence in [
            "MIT",
            "GPL-3.0 OR MIT",
            "Unlicense/MIT",
            "Apache-2.0 AND ISC",
            "(MIT OR GPL-2.0) AND ISC",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
        ] {
            assert!(accepts(licence, &allowed), "{licence}");
        }
        for licence in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(MIT OR ISC) AND GPL-3.0",
            "MIT WITH LLVM-exception",
            "MIT MIT",
            "(MIT",
        ] {
            assert!(!accepts(licence, &allowed), "{licence}");
        }
    }
}
