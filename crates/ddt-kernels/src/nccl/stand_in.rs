//! A driver and NCCL without GPUs, for tests: bytes go between real processes, through sockets.
//!
//! It refuses what the libraries refuse, and waits for ever where they do. A program finds libraries when it starts, so it is
//! started with one of these folders as `LD_LIBRARY_PATH`.

use std::path::PathBuf;

use crate::compiler::{Failed, compile, link};

/// A folder with both libraries, of eight devices.
///
/// # Errors
/// Words about a C++ compiler that is missing, or fails.
pub fn folder() -> Result<PathBuf, String> {
    with(&["libcuda.so.1", "libnccl.so.2"], "both")
}

/// A folder with the driver alone.
///
/// # Errors
/// As [`folder`].
pub fn folder_without_nccl() -> Result<PathBuf, String> {
    with(&["libcuda.so.1"], "driver")
}

fn with(names: &[&str], folder: &str) -> Result<PathBuf, String> {
    let built = compile("stand_in_nccl.cpp", "ddt-stand-in-nccl", &["-pthread".into()]);
    let built = built.map_err(|error| match error {
        Failed::NoCompiler => "expected a C++ compiler, $CXX, c++, g++ or clang++; none is there".to_owned(),
        Failed::Said(it) => it,
    })?;
    let folder = built.with_extension(folder);
    let made = std::fs::create_dir_all(&folder);
    made.and_then(|()| names.iter().try_for_each(|it| link(&built, &folder.join(it))))
        .map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}
