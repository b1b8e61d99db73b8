//! The CUDA kernels over the shapes of DDT-XL/2: a JSON row each, with rate and peak.
//!
//! `cargo bench -p ddt-benches --features cuda --bench cuda`; says so where there is no GPU.

#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr, reason = "a table on standard output")]

use ddt_kernels::cuda::{Cuda, CudaError, checks};

fn main() -> Result<(), CudaError> {
    let cuda = match Cuda::open(0) {
        Ok(cuda) => cuda,
        Err(error @ (CudaError::NoDriver | CudaError::NoDevice { .. })) => {
            eprintln!("skipped: no CUDA device: {error}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let checks = checks::verify_all(&cuda)?;
    for wrong in checks.iter().filter(|check| !check.passed()) {
        eprintln!("wrong: {}", wrong.to_json());
    }
    for rate in checks::bench_all(&cuda)? {
        println!("{}", rate.to_json());
    }
    Ok(())
}
