//! Whole kernels and their launchers, on a GPU.

use ddt_kernels::cuda::checks::verify_all;
use ddt_kernels::cuda::{Cuda, CudaError};

#[test]
fn every_kernel_is_right() {
    match Cuda::open(0) {
        Ok(cuda) => super::all_passed(&verify_all(&cuda).unwrap()),
        Err(error @ (CudaError::NoDriver | CudaError::NoDevice { .. })) => {
            eprintln!("skipped: no CUDA device: {error}");
        }
        Err(error) => panic!("{error}"),
    }
}
