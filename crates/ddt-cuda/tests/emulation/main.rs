//! The GPU's kernels, emulated on the CPU.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

use std::{io::Write, path::PathBuf};

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

/// The file of a golden.
fn golden(name: &str) -> PathBuf {
    ddt_parity::golden(name).unwrap().path().to_owned()
}

/// Straight to stderr: the harness would capture a print of a test that passes.
fn skipped(why: &str) {
    std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()).unwrap();
}
