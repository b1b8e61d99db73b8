//! The CUDA kernels against f64: on a GPU where one is, and on the CPU in a GPU's place.
#![cfg(any(feature = "cuda", feature = "cuda-emulation"))]

use ddt_kernels::cuda::checks::Check;

#[cfg(feature = "cuda-emulation")]
mod emulated;
#[cfg(feature = "cuda")]
mod gpu;

/// Fails with a list of the kernels that are wrong.
fn all_passed(checks: &[Check]) {
    assert!(!checks.is_empty());
    let wrong: Vec<String> =
        checks.iter().filter(|check| !check.passed()).map(|check| format!("{check:?}")).collect();
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), checks.len(), wrong.join("\n"));
}
