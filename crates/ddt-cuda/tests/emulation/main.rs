//! What the GPU's own kernels compute, with the CPU in the GPU's place.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use ddt_kernels::cuda::{
    Cuda, CudaError,
    emulation::{Order, open},
};

mod inception;
mod kl;
mod sampler;

/// The CPU in place of a GPU; without a C++ compiler, says so.
fn device() -> Option<Cuda> {
    match open(Order::Forwards) {
        Ok(cuda) => Some(cuda),
        Err(error @ CudaError::NoCompiler) => {
            skipped(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A file of what independent implementations computed; where it is not, says so.
fn fixture(name: &str) -> Option<PathBuf> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/fixtures"));
    let path = folder.join(format!("{name}.safetensors"));
    if !path.exists() {
        skipped(&format!("{} is not there", path.display()));
        return None;
    }
    Some(path)
}

/// Straight to stderr: the harness would capture a print of a test that passes.
fn skipped(why: &str) {
    std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()).unwrap();
}
