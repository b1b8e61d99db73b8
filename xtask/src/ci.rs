//! The checks of continuous integration, cheapest first.

use std::process::ExitCode;

use anyhow::Result;
use xshell::{Shell, cmd};

/// Stops at the first check that fails.
pub(crate) fn run() -> Result<ExitCode> {
    let sh = Shell::new()?;
    sh.change_dir(crate::tidy::root());
    cmd!(sh, "cargo fmt --all --check").run()?;
    crate::tidy::check(&crate::tidy::root())?;
    cmd!(sh, "cargo clippy --workspace --all-targets -- -D warnings").run()?;
    cmd!(sh, "cargo test --workspace").run()?;
    let _docs = sh.push_env("RUSTDOCFLAGS", "-D warnings");
    cmd!(sh, "cargo doc --workspace --no-deps").run()?;
    crate::package::run(&crate::package::Args { downstream: false, verify: false })
}
