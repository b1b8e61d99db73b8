//! A folder that carries the check to a machine with a GPU.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// The program that checks a GPU.
pub(super) const PROGRAM: &str = "ddt-cuda-check";

/// Largest size of pack and checkout together.
const MOST_BYTES: u64 = 60 << 20;

/// Finds CUDA's libraries where they usually are, those of Python's wheels included, and runs the check.
const RUN: &str = r#"#!/usr/bin/env bash
# Checks the GPU of this machine; writes report.json and report.txt into the first argument, or here.
# Needs: NVIDIA's driver and CUDA 13's libcublasLt; cuDNN 9 where it is. Status 3: there is no GPU.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
for found in /usr/local/cuda*/lib64/libcublasLt.so.13 \
    $(python3 -c 'import site, glob
for folder in site.getsitepackages() + [site.getusersitepackages()]:
    for library in "libcublasLt.so.13", "libcudnn.so.9":
        print(*glob.glob(folder + "/nvidia/*/lib/" + library))' 2>/dev/null || true); do
    if [ -e "$found" ]; then
        export LD_LIBRARY_PATH="$(dirname "$found")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    fi
done
exec "$here/ddt-cuda-check" --fixtures "$here/fixtures" --peer "$here/peer" --out "$out"
"#;

/// Fills the folder, and says what it weighs.
pub(super) fn pack(root: &Path, program: &Path, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let packed = folder.join(PROGRAM);
    std::fs::copy(program, &packed).with_context(|| format!("cannot copy {}", program.display()))?;
    match Command::new("strip").arg(&packed).status() {
        Ok(status) if status.success() => {}
        _ => println!("strip is not here: the program keeps its symbols"),
    }
    let shared = root.join("../shared");
    copy(&shared.join("fixtures"), &folder.join("fixtures"), |name| {
        let kinds = ["ddt_forward", "ddt_sample", "vae_kl", "inception"];
        name.ends_with(".safetensors") && kinds.iter().any(|kind| name.starts_with(kind))
    })?;
    copy(&shared.join("peer"), &folder.join("peer"), |name| name.ends_with(".py"))?;
    let script = folder.join("run.sh");
    std::fs::write(&script, RUN)?;
    make_executable(&script)?;

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

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> Result<()> {
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
    let output = Command::new("git").current_dir(root).args(["ls-files", "-z"]).output();
    let listed = output.context("git does not start")?.stdout;
    let listed = String::from_utf8_lossy(&listed).into_owned();
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
