//! The folder `cu` compiled by the system's C++ compiler, for tests that need no GPU.

use std::ffi::OsString;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Why there is no library.
#[derive(Debug)]
pub(crate) enum Failed {
    /// None is installed.
    NoCompiler,
    /// What it, or the file system, said.
    Said(String),
}

fn said(error: impl Display) -> Failed {
    Failed::Said(error.to_string())
}

/// Compiles a source into a library beside the running program, which is where its builder keeps what was built. A file that
/// is there already was compiled from the same sources with the same flags.
pub(crate) fn compile(source: &str, name: &str, flags: &[OsString]) -> Result<PathBuf, Failed> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cu");
    let mut hash = DefaultHasher::new();
    flags.hash(&mut hash);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(|error| Failed::Said(format!("{}: {error}", folder.display())))?;
    files.sort();
    for file in &files {
        std::fs::read(file).map_err(said)?.hash(&mut hash);
    }
    let program = std::env::current_exe().map_err(said)?;
    let path = program.with_file_name(format!("{name}-{:016x}.so", hash.finish()));
    if path.exists() {
        return Ok(path);
    }
    let beside = path.with_extension(format!("{}.so", std::process::id()));
    let named = std::env::var("CXX").ok();
    let compilers = named.as_deref().into_iter().chain(["c++", "g++", "clang++"]);
    let mut found = None;
    for compiler in compilers {
        // Hardened `longjmp` refuses to go from one stack to another.
        let output = Command::new(compiler)
            .args(["-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-fPIC", "-shared"])
            .arg(folder.join(source))
            .args(flags)
            .arg("-o")
            .arg(&beside)
            .output();
        match output {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Failed::Said(format!("{compiler}: {error}"))),
            Ok(output) => {
                found = Some(output);
                break;
            }
        }
    }
    let output = found.ok_or(Failed::NoCompiler)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> = text.lines().filter(|line| line.contains("error")).take(3).collect();
        return Err(Failed::Said(errors.join("; ")));
    }
    std::fs::rename(&beside, &path).map_err(said)?;
    Ok(path)
}

/// Makes a link; tests run side by side, so another may have made it.
pub(crate) fn link(to: &Path, at: &Path) -> std::io::Result<()> {
    match std::os::unix::fs::symlink(to, at) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
