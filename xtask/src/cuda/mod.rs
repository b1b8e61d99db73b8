//! The GPU's program: a toolkit to compile it with, the build, a folder to carry it in, and the check.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::tidy::root;
use pack::PROGRAM;

mod pack;
mod toolkit;

/// Build the program that checks a GPU, and pack or run it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave a folder that runs where there are a driver and CUDA 13 libraries, but no Rust
    #[arg(long, value_name = "FOLDER")]
    pack: Option<PathBuf>,
    /// Run the check here; its status is 3 where there is no GPU
    #[arg(long)]
    check: bool,
    /// Where the check writes report.json and report.txt
    #[arg(long, value_name = "FOLDER", default_value = "target/cuda-report")]
    out: PathBuf,
    /// Build without optimising the whole, which reuses what tests have built
    #[arg(long)]
    dev: bool,
    /// Build the program `ddt` with the feature too
    #[arg(long)]
    examples: bool,
    /// Where no toolkit can be had, say so and succeed
    #[arg(long)]
    optional: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let home = match toolkit::find_or_make() {
        Err(error) if args.optional => {
            println!("skipped: {error:#}");
            return Ok(ExitCode::SUCCESS);
        }
        found => found?,
    };
    println!("CUDA toolkit: {}", home.display());
    build(&home, args.dev, ("ddt-cuda", "gpu-check"), &["--bin", PROGRAM])?;
    if args.examples {
        build(&home, args.dev, ("ddt-cli", "cuda"), &["--bin", "ddt"])?;
    }
    let program = target_folder()?.join(if args.dev { "debug" } else { "release" }).join(PROGRAM);
    println!("built {}: compiled and linked, which says nothing of a GPU", program.display());
    if let Some(folder) = &args.pack {
        pack::pack(&root(), &program, folder)?;
    }
    if args.check {
        return check(&program, &args.out);
    }
    Ok(ExitCode::SUCCESS)
}

fn build(home: &Path, dev: bool, (package, feature): (&str, &str), what: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).arg("build").env("CUDA_HOME", home);
    if dev {
        // As the whole workspace, so that third-party crates are those that tests were built with.
        command.arg("--workspace").arg("--features").arg(format!("{package}/{feature}"));
    } else {
        command.args(["--release", "-p", package, "--features", feature]);
    }
    let status = command.args(what).status().context("cargo does not start")?;
    if !status.success() {
        bail!("building {package} with the feature {feature} ended with {status}");
    }
    Ok(())
}

/// Where cargo builds to, whatever decides it.
fn target_folder() -> Result<PathBuf> {
    let sh = xshell::Shell::new()?;
    sh.change_dir(root());
    let json = xshell::cmd!(sh, "cargo metadata --format-version 1 --no-deps").quiet().read()?;
    let metadata: serde_json::Value = serde_json::from_str(&json)?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names no target directory")?.into())
}

fn check(program: &Path, out: &Path) -> Result<ExitCode> {
    let root = root();
    let shared = root.join("../shared");
    let status = Command::new(program)
        .arg("--fixtures")
        .arg(shared.join("fixtures"))
        .arg("--peer")
        .arg(shared.join("peer"))
        .arg("--out")
        .arg(root.join(out))
        .status()
        .with_context(|| format!("{} does not start", program.display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
