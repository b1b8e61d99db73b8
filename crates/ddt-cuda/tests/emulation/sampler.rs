//! Programs launched as the GPU's own kernels, which the CPU runs in its place.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use ddt_cuda::{
    CudaExecutor, CudaSampler, DeviceWeights, EulerOptions, Precision, Programs, Reference, Run, StepKind,
    by_formula, execute,
    parity::{self, relative_rms},
};
use ddt_flow::{Guidance, TimeGrid, noise_batch};
use ddt_model::DdtConfig;
use ddt_sharing::SharingPlan;

use crate::{device, golden};

fn config() -> DdtConfig {
    DdtConfig {
        in_channels: 3,
        patch_size: 2,
        hidden_size: 48,
        num_heads: 3,
        num_encoder_blocks: 2,
        num_decoder_blocks: 2,
        num_classes: 5,
    }
}

#[test]
fn kernels_draw_what_the_reference_draws() {
    let Some(cuda) = device() else { return };
    let cfg = config();
    let noise = noise_batch(3, &[0, 1], (3, 4, 6), &Device::Cpu).unwrap();
    let plan = SharingPlan::uniform(6, 2).unwrap();
    let channels = std::num::NonZeroUsize::new(2).unwrap();
    let options = EulerOptions {
        grid: TimeGrid::new(6, Some(0.05), 1.3).unwrap(),
        guidance: Guidance::new(2.0, (0.4, 0.9)).unwrap().with_channels(channels),
        plan: Some(&plan),
    };
    for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 3e-2)] {
        let run = Run::new(&cfg, precision, &noise, &[4, 0], &options).unwrap();
        let programs = Programs::new(&cfg, run.batch).unwrap();
        let mut reference = Reference::new(programs, &by_formula(7)).unwrap();
        let want = execute(&mut reference, &cfg, &run, &mut |_| ControlFlow::Continue(())).unwrap();
        let mut sampler = CudaSampler::on(&cuda, &cfg, precision, &by_formula(7)).unwrap();
        let mut draw = || {
            let sampled = sampler.sample(&noise, &[4, 0], &options, &mut |_| ControlFlow::Continue(()));
            sampled.unwrap()
        };
        let (got, again) = (draw(), draw());
        assert_eq!(got.calls, want.calls);
        let error = relative_rms(&got.latents, &want.latents).unwrap();
        assert!(error < tolerance, "{precision:?}: {error:e}");
        // Graphs that were captured before give the same bits.
        let bits = |it: &Tensor| it.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bits(&got.latents), bits(&again.latents));
    }
}

#[test]
fn kernels_compute_what_the_goldens_say() {
    let Some(cuda) = device() else { return };
    for (name, tolerance) in [("ddt_forward", 1e-5), ("ddt_forward_pixels", 1e-5), ("ddt_sample", 1e-4)] {
        let path = golden(name);
        for (precision, tolerance) in [(Precision::F32, tolerance), (Precision::Bf16, 8e-2)] {
            let compared = parity::fixture(&path, precision, &mut |programs, source| {
                let weights = DeviceWeights::upload(&cuda, programs.weights(), precision, source)?;
                Ok(Box::new(CudaExecutor::new(&cuda, programs, &weights)?))
            });
            for output in compared.unwrap() {
                assert!(output.relative_rms < tolerance, "{name}, {precision:?}: {output:?}");
            }
        }
    }
}

#[test]
fn sizes_without_a_kernel_are_refused() {
    let Some(cuda) = device() else { return };
    let cfg = DdtConfig { hidden_size: 44, num_heads: 1, ..config() };
    let noise = noise_batch(3, &[0], (3, 4, 6), &Device::Cpu).unwrap();
    let options =
        EulerOptions { grid: TimeGrid::new(2, None, 1.0).unwrap(), guidance: Guidance::none(), plan: None };
    let mut sampler = CudaSampler::on(&cuda, &cfg, Precision::F32, &by_formula(7)).unwrap();
    let message = sampler.sample(&noise, &[1], &options, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(message.to_string().contains("hidden_size is 44"), "{message}");
    assert_eq!(StepKind::ALL.len(), 5);
}
