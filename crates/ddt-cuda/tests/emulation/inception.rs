//! Inception by the GPU's kernels, which the CPU runs in its place, against the CPU's own.

use candle_core::{DType, Device, Tensor};
use ddt_adapters::{Inception, inception::FoldedInception};
use ddt_cuda::CudaInception;
use ddt_flow::noise_batch;
use ddt_parity::relative_rms;

use crate::device;

#[test]
fn features_are_those_of_the_cpu() {
    let Some(cuda) = device() else { return };
    let weights = FoldedInception::synthetic(&candle_core::Device::Cpu).unwrap();
    let (cpu, gpu) =
        (Inception::from_folded(&weights).unwrap(), CudaInception::new(&cuda, &weights).unwrap());
    let noise = noise_batch(4, &[0, 1], (3, 21, 34), &Device::Cpu).unwrap();
    let pixels = ((noise * 40.0).unwrap() + 128.0).unwrap();
    let (got, want) = (gpu.forward(&pixels).unwrap(), cpu.forward(&pixels).unwrap());
    for (name, got, want) in [
        ("pool", &got.pool, &want.pool),
        ("spatial", &got.spatial, &want.spatial),
        ("logits_unbiased", &got.logits_unbiased, &want.logits_unbiased),
        ("logits", &got.logits, &want.logits),
    ] {
        assert_eq!(got.dims(), want.dims(), "{name}");
        let error = relative_rms(got, want).unwrap();
        assert!(error < 1e-5, "{name}: {error:e}");
    }
    for shape in [vec![1, 4, 8, 8], vec![3, 8, 8], vec![0, 3, 8, 8]] {
        assert!(gpu.forward(&Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()).is_err());
    }
}
