//! The GPU's program: a toolkit to compile it with, the build, a folder to carry it in, and the check.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::tidy::{metadata, root};

mod candle;
mod toolkit;

/// The program that checks a GPU.
const PROGRAM: &str = "ddt-cuda-check";

/// Largest size of pack and checkout together.
const MOST_BYTES: u64 = 60 << 20;

/// Finds CUDA's libraries where they usually are, those of Python's wheels included, and runs the check.
const RUN: &str = r#"#!/usr/bin/env bash
# Checks the GPU of this machine; writes report.json and report.txt into the first argument, or here.
# Needs: NVIDIA's driver and the libcublasLt of CUDA 13 or 12; cuDNN 9 where it is. Status 3: there is no GPU.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
for found in /usr/local/cuda*/lib64/libcublasLt.so.1[23] \
    $(python3 -c 'import site, glob
for folder in site.getsitepackages() + [site.getusersitepackages()]:
    for library in "libcublasLt.so.1[23]", "libcudnn.so.9":
        print(*glob.glob(folder + "/nvidia/*/lib/" + library))' 2>/dev/null || true); do
    if [ -e "$found" ]; then
        export LD_LIBRARY_PATH="$(dirname "$found")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    fi
done
exec "$here/ddt-cuda-check" --fixtures "$here/fixtures" --peer "$here/peer" --out "$out"
"#;

/// Build the program that checks a GPU, and pack or run it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave a folder that runs where there are a driver and CUDA's libraries, but no Rust
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
    /// Test the kernels on the CPU, and what talks to NVIDIA's driver with a stand-in for it; builds as --dev. Without
    /// a toolkit the kernels alone are tested
    #[arg(long)]
    stand_in: bool,
    /// Test candle's CUDA devices with a stand-in for NVIDIA's libraries that runs candle's kernels on the CPU
    #[arg(long)]
    candle: bool,
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
            if args.stand_in {
                stand_in(None)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        found => found?,
    };
    println!("CUDA toolkit: {}", home.display());
    if args.candle {
        return test_candle(&home);
    }
    let dev = args.dev || args.stand_in;
    if args.stand_in {
        stand_in(Some(&home))?;
    } else {
        build(&home, dev, ("ddt-parity", "gpu-check"), &["--bin", PROGRAM])?;
    }
    if args.examples {
        build(&home, dev, ("ddt-cli", "cuda"), &["--bin", "ddt"])?;
    }
    let (_, target) = metadata(&root())?;
    let program = target.join(if dev { "debug" } else { "release" }).join(PROGRAM);
    println!("built {}: compiled and linked, which says nothing of a GPU", program.display());
    if let Some(folder) = &args.pack {
        pack(&root(), &program, folder)?;
    }
    if args.check {
        return check(&program, &args.out);
    }
    Ok(ExitCode::SUCCESS)
}

fn build(home: &Path, dev: bool, (package, feature): (&str, &str), what: &[&str]) -> Result<()> {
    let sh = Shell::new()?;
    sh.change_dir(root());
    let _home = sh.push_env("CUDA_HOME", home);
    if dev {
        // As the whole workspace, so that third-party crates are those that tests were built with.
        let feature = format!("{package}/{feature}");
        cmd!(sh, "cargo build --workspace --features {feature} {what...}").run()?;
    } else {
        cmd!(sh, "cargo build --release -p {package} --features {feature} {what...}").run()?;
    }
    Ok(())
}

/// Tests the kernels' sources, compiled by the C++ compiler, and what launches them; with a toolkit the driver's users
/// too. The program and the tests are built with the same features, so that nothing is compiled twice.
fn stand_in(home: Option<&Path>) -> Result<()> {
    let sh = Shell::new()?;
    sh.change_dir(root());
    let emulated = ["--test", "emulation", "--test", "cuda"];
    let Some(home) = home else {
        let features = ["--workspace", "--features", "ddt-parity/cuda-emulation"];
        return Ok(cmd!(sh, "cargo test -q {features...} {emulated...}").run()?);
    };
    let _home = sh.push_env("CUDA_HOME", home);
    let features = ["--workspace", "--features", "ddt-parity/gpu-check,ddt-parity/cuda-emulation"];
    cmd!(sh, "cargo test -q {features...} --test stand_in {emulated...}").run()?;
    Ok(cmd!(sh, "cargo build {features...} --bin {PROGRAM}").run()?)
}

/// Tests candle's CUDA devices where a toolkit can be had.
pub(crate) fn test_candle_if_possible() -> Result<()> {
    match toolkit::find_or_make() {
        Ok(home) => test_candle(&home).map(drop),
        Err(error) => {
            println!("candle's CUDA devices were not tested: {error:#}");
            Ok(())
        }
    }
}

/// Builds candle's CUDA backend with a toolkit whose libraries are the stand-in, and runs what is tested on its devices.
fn test_candle(home: &Path) -> Result<ExitCode> {
    let (root, sh) = (root(), Shell::new()?);
    sh.change_dir(&root);
    let folder = metadata(&root)?.1.join("cuda-candle");
    candle::toolkit(&root, home, &folder)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([folder.join("bin")].into_iter().chain(std::env::split_paths(&path)))?;
    let _path = sh.push_env("PATH", path);
    let _home = sh.push_env("CUDA_HOME", &folder);
    let _capability = sh.push_env("CUDA_COMPUTE_CAP", "80");
    let _libraries = sh.push_env("LD_LIBRARY_PATH", folder.join("lib"));
    let features = ["--workspace", "--features", "ddt-parity/candle-cuda"];
    cmd!(sh, "cargo test -q {features...} --test candle_cuda").run()?;
    Ok(ExitCode::SUCCESS)
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

/// Fills the folder, and says what it weighs.
fn pack(root: &Path, program: &Path, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let packed = folder.join(PROGRAM);
    std::fs::copy(program, &packed).with_context(|| format!("cannot copy {}", program.display()))?;
    match Command::new("strip").arg(&packed).status() {
        Ok(status) if status.success() => {}
        _ => println!("strip is not here: the program keeps its symbols"),
    }
    let shared = root.join("../shared");
    copy(&shared.join("fixtures"), &folder.join("fixtures"), |name| {
        let kinds = ["ddt_forward", "ddt_sample", "ddt_forecast", "vae_kl", "inception"];
        name.ends_with(".safetensors") && kinds.iter().any(|kind| name.starts_with(kind))
    })?;
    copy(&shared.join("peer"), &folder.join("peer"), |name| name.ends_with(".py"))?;
    let script = folder.join("run.sh");
    std::fs::write(&script, RUN)?;
    toolkit::make_executable(&script)?;

    let (pack, checkout) = (bytes_under(folder)?, checkout_bytes(root)?);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("packed {}: {:.1} MiB, and the checkout {:.1} MiB", folder.display(), mib(pack), mib(checkout));
    if pack + checkout > MOST_BYTES {
        bail!("pack and checkout weigh {:.1} MiB together, expected at most 60", mib(pack + checkout));
    }
    Ok(())
}

/// Copies the files that are wanted; says so where there is nothing to copy from.
fn copy(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    if !from.is_dir() {
        println!("not packed: {} is not there", from.display());
        return Ok(());
    }
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if wanted(&name) {
            // Bytes, not permissions: the source may be read-only, and a second packing writes again.
            std::fs::write(to.join(name), std::fs::read(&path)?)?;
        }
    }
    Ok(())
}

fn bytes_under(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let path: PathBuf = entry?.path();
        bytes += if path.is_dir() { bytes_under(&path)? } else { path.metadata()?.len() };
    }
    Ok(bytes)
}

/// Bytes of the files that git tracks.
fn checkout_bytes(root: &Path) -> Result<u64> {
    let sh = Shell::new()?;
    sh.change_dir(root);
    let listed = cmd!(sh, "git ls-files -z").quiet().read()?;
    let size = |name: &str| root.join(name).metadata().map_or(0, |it| it.len());
    Ok(listed.split('\0').filter(|name| !name.is_empty()).map(size).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_has_the_program_and_a_script_that_runs_it() {
        let folder = tempfile::tempdir().unwrap();
        let (root, out) = (crate::tidy::root(), folder.path().join("pack"));
        let program = folder.path().join(PROGRAM);
        std::fs::write(&program, "not a program").unwrap();
        for _ in 0..2 {
            pack(&root, &program, &out).unwrap();
        }
        assert!(std::fs::read_to_string(out.join("run.sh")).unwrap().contains(PROGRAM));
        assert!(out.join(PROGRAM).is_file());
    }
}
