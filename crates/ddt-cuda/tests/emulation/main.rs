//! The GPU's kernels, which the CPU runs in its place, against the networks on the CPU.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

use std::io::Write;

use ddt_kernels::cuda::{
    Cuda, CudaError,
    emulation::{Order, open},
};

#[cfg(feature = "cuda")]
use ddt_kernels::cuda::stand_in;

mod inception;
mod kl;
mod sampler;

/// The CPU in place of a GPU; without a C++ compiler, says so straight to stderr, because the harness would capture a
/// print of a test that passes.
fn device() -> Option<Cuda> {
    #[cfg(feature = "cuda")]
    if stand_in::is_here() {
        return Some(Cuda::open(0).unwrap());
    }
    match open(Order::Forwards) {
        Err(error @ CudaError::NoCompiler) => {
            std::io::stderr().write_all(format!("skipped: {error}\n").as_bytes()).unwrap();
            None
        }
        opened => Some(opened.unwrap()),
    }
}

/// All of these tests, as a driver's work: contexts, streams, graphs and cuBLASLt.
#[cfg(feature = "cuda")]
#[test]
fn the_same_on_a_stand_in_driver() {
    assert!(stand_in::is_here() || stand_in::StandIn::default().run(&[]).unwrap());
}
