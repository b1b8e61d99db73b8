//! The goldens that a GPU has programs for, by its kernels, which the CPU runs in its place.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::Write;

use ddt_cuda::{Cuda, CudaError, Precision};
use ddt_kernels::cuda::emulation::{Order, open};
#[cfg(feature = "gpu-check")]
use ddt_kernels::cuda::stand_in;
use ddt_parity::{compare_on_gpu, golden};

/// The CPU in place of a GPU; without a C++ compiler, says so straight to stderr.
fn device() -> Option<Cuda> {
    #[cfg(feature = "gpu-check")]
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

#[test]
fn kernels_compute_what_the_goldens_say() {
    let Some(cuda) = device() else { return };
    for (name, outputs) in [
        ("ddt_forward", 2),
        ("ddt_forward_pixels", 2),
        ("ddt_sample", 7),
        ("ddt_forecast", 7),
        ("inception", 4),
    ] {
        for precision in [Precision::F32, Precision::Bf16] {
            let compared = compare_on_gpu(&golden(name).unwrap(), &cuda, precision).unwrap();
            let expected = if name == "inception" && precision == Precision::Bf16 { 0 } else { outputs };
            assert_eq!(compared.len(), expected, "{name}, {precision:?}");
            assert!(compared.iter().all(|it| it.passed()), "{name}, {precision:?}: {compared:?}");
        }
    }
}

// The goldens are narrower than the kernels allow; ddt-cuda compares the kernels with the CPU's decoder, which
// ddt-adapters compares with these goldens.
#[test]
fn goldens_narrower_than_the_kernels_allow_are_refused() {
    let Some(cuda) = device() else { return };
    for name in ["vae_kl", "vae_kl_old_names"] {
        let error =
            format!("{:#}", compare_on_gpu(&golden(name).unwrap(), &cuda, Precision::F32).unwrap_err());
        assert!(
            error.contains("block_out_channels is 12") && error.contains("multiples of 8"),
            "{name}: {error}"
        );
    }
}

/// The goldens as a driver's work: contexts, streams, graphs and cuBLASLt.
#[cfg(feature = "gpu-check")]
#[test]
fn the_same_on_a_stand_in_driver() {
    assert!(stand_in::is_here() || stand_in::StandIn::default().run(&[]).unwrap());
}
