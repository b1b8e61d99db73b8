//! Compares fixtures with the results of this workspace: one line per output.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use candle_core::DType;

/// Compare fixtures with the results of this workspace
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fixture files (.safetensors)
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Type of the networks' weights: f32, or bf16 for kinds that are networks, at a tolerance of its own
    #[arg(long, default_value = "f32", value_parser = crate::time::one_of(["f32", "bf16"]))]
    dtype: DType,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (passed, failed) = compare(&args.files, args.dtype);
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Numbers of outputs that passed and failed; a file that is no fixture is one that failed.
fn compare<P: AsRef<Path>>(files: &[P], dtype: DType) -> (usize, usize) {
    let (mut passed, mut failed) = (0, 0);
    for path in files {
        let path = path.as_ref();
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        match ddt_parity::compare(path, dtype) {
            Ok(comparisons) => {
                for it in comparisons {
                    println!("{name} {it}");
                    *if it.passed() { &mut passed } else { &mut failed } += 1;
                }
            }
            Err(error) => {
                println!("{name} - - - FAIL {error:#}");
                failed += 1;
            }
        }
    }
    (passed, failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_and_files_that_fail_are_counted() {
        let golden = ddt_parity::folder().join("ddt_forward.safetensors");
        let files = [golden.as_path(), Path::new("absent"), Path::new("Cargo.toml")];
        assert_eq!(compare(&files, DType::F32), (3, 2));
        assert_eq!(compare(&files[..1], DType::BF16), (3, 0));
    }
}
