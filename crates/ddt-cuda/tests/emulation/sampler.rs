//! Programs of a step against the network they are programs of, and its sampler.

use std::{num::NonZeroUsize, ops::ControlFlow};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddt_cuda::{
    Cuda, CudaExecutor, CudaSampler, DeviceWeights, EulerOptions, Precision, Programs, Run, StepKind,
    step_kinds, synthetic_weights,
};
use ddt_flow::{EULER, Guidance, TimeGrid, noise_batch};
use ddt_model::{Ddt, DdtConfig, SampleOptions, sample};
use ddt_parity::relative_rms;
use ddt_sharing::{ForecastOrder, SharingPlan};

use crate::device;

/// Sizes for latents of 4 x 6 in patches of 2: no two are equal, so a mistaken one is seen.
fn config(encoder: usize, decoder: usize) -> DdtConfig {
    DdtConfig {
        in_channels: 3,
        patch_size: 2,
        hidden_size: 48,
        num_heads: 4,
        num_encoder_blocks: encoder,
        num_decoder_blocks: decoder,
        num_classes: 5,
    }
}

fn noise(images: u64) -> Tensor {
    noise_batch(3, &(0..images).collect::<Vec<_>>(), (3, 4, 6), &Device::Cpu).unwrap()
}

/// Options without guidance or a plan.
fn plain(steps: usize) -> EulerOptions<'static> {
    EulerOptions { grid: TimeGrid::new(steps, None, 1.0).unwrap(), guidance: Guidance::none(), plan: None }
}

fn go_on(_: ddt_flow::Step) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The relative error of the programs' latents, compared with the sampler's on the CPU.
fn error(cuda: &Cuda, cfg: &DdtConfig, precision: Precision, options: &EulerOptions<'_>) -> f64 {
    let (noise, labels, vb) = (noise(3), [4, 0, 2], synthetic_weights(1));
    let mut sampler = CudaSampler::new(cuda, cfg, precision, &vb).unwrap();
    let mut run = || sampler.sample(&noise, &labels, options, &mut go_on).unwrap();
    let (got, again) = (run(), run());
    // Graphs that were captured before give the same bits.
    assert_eq!(relative_rms(&again.latents, &got.latents).unwrap(), 0.0);

    let EulerOptions { grid, guidance, plan } = options.clone();
    let options = SampleOptions { grid, solver: &EULER, guidance, plan };
    let want =
        sample(&Ddt::new(cfg, vb).unwrap(), &noise, &labels, &options, &mut |_| ControlFlow::Continue(()))
            .unwrap();
    assert_eq!(got.calls, want.calls);
    relative_rms(&got.latents, &want.latents).unwrap()
}

#[test]
fn one_step_is_one_call_of_the_network() {
    let Some(cuda) = device() else { return };
    // A single Euler step is x + v(x, 0).
    for (encoder, decoder) in [(2, 2), (1, 3), (0, 2), (2, 0)] {
        for guidance in [Guidance::none(), Guidance::new(2.5, (-1.0, 1.0)).unwrap()] {
            let options = EulerOptions { guidance, ..plain(1) };
            let error = error(&cuda, &config(encoder, decoder), Precision::F32, &options);
            assert!(error < 5e-6, "{encoder} + {decoder} blocks, {guidance:?}: {error:e}");
        }
    }
}

#[test]
fn whole_runs_are_those_of_the_sampler() {
    let Some(cuda) = device() else { return };
    let guidance = Guidance::new(2.0, (0.3, 0.9)).unwrap();
    let mut kinds = [false; 5];
    for every in [1, 2, 3, 4] {
        let plan = SharingPlan::uniform(11, every).unwrap();
        for (shift, guidance) in [(1.0, guidance), (2.0, guidance), (1.0, Guidance::none())] {
            let grid = TimeGrid::new(11, Some(0.05), shift).unwrap();
            let options = EulerOptions { grid, guidance, plan: (every > 1).then_some(&plan) };
            let error = error(&cuda, &config(2, 2), Precision::F32, &options);
            assert!(error < 1e-5, "every {every}, shift {shift}, {guidance:?}: {error:e}");
            for kind in step_kinds(&options.grid, &guidance, options.plan).unwrap() {
                kinds[kind.index()] = true;
            }
        }
    }
    assert_eq!(kinds, [true; 5], "kinds of steps that ran, of {:?}", StepKind::ALL);
}

#[test]
fn forecasts_are_those_of_the_sampler() {
    let Some(cuda) = device() else { return };
    let guidance = Guidance::new(2.0, (0.3, 0.9)).unwrap();
    for order in [ForecastOrder::Linear, ForecastOrder::Quadratic] {
        // More runs of the encoder than sets, as many, and fewer.
        for recompute in [vec![0, 2, 3, 6, 8], vec![0, 1, 5], vec![0, 5], vec![0]] {
            let plan = SharingPlan::new(recompute.clone(), 11).unwrap().with_order(order);
            let grid = TimeGrid::new(11, Some(0.05), 2.0).unwrap();
            let kinds = step_kinds(&grid, &guidance, Some(&plan)).unwrap();
            assert!(kinds.contains(&StepKind::ClassLookAhead), "{kinds:?}");
            let options = EulerOptions { grid, guidance, plan: Some(&plan) };
            let error = error(&cuda, &config(2, 2), Precision::F32, &options);
            assert!(error < 1e-5, "order {order} from {recompute:?}: {error:e}");
        }
    }
}

#[test]
fn what_is_not_forecast_has_the_bits_of_reuse() {
    let Some(cuda) = device() else { return };
    let cfg = config(2, 2);
    let every_step = SharingPlan::every_step(6).unwrap();
    let one_run = SharingPlan::uniform(6, 6).unwrap();
    for precision in [Precision::F32, Precision::Bf16] {
        let mut sampler = CudaSampler::new(&cuda, &cfg, precision, &synthetic_weights(1)).unwrap();
        let mut run = |plan: Option<&SharingPlan>| {
            let guidance = Guidance::new(2.0, (0.3, 0.9)).unwrap();
            let options = EulerOptions { guidance, plan, ..plain(6) };
            sampler.sample(&noise(3), &[4, 0, 2], &options, &mut go_on).unwrap().latents
        };
        for (reuse, plan) in [(None, &every_step), (Some(&one_run), &one_run)] {
            let want = run(reuse);
            for order in [ForecastOrder::Linear, ForecastOrder::Quadratic] {
                let got = run(Some(&plan.clone().with_order(order)));
                assert_eq!(relative_rms(&got, &want).unwrap(), 0.0, "{plan:?}, order {order}");
            }
        }
    }
}

#[test]
fn sixteen_bits_stay_near() {
    let Some(cuda) = device() else { return };
    let guidance = Guidance::new(1.5, (0.2, 1.0)).unwrap();
    for (num_heads, order) in [(3, ForecastOrder::Quadratic), (4, ForecastOrder::Reuse)] {
        let plan = SharingPlan::uniform(8, 2).unwrap().with_order(order);
        // Heads of 16 channels are for tensor cores, heads of 12 are not.
        let cfg = DdtConfig { num_heads, ..config(2, 2) };
        let options = EulerOptions { guidance, plan: Some(&plan), ..plain(8) };
        let error = error(&cuda, &cfg, Precision::Bf16, &options);
        assert!((1e-5..3e-2).contains(&error), "{num_heads} heads: {error:e}");
    }
}

#[test]
fn guided_channels_are_limited_as_on_the_cpu() {
    let Some(cuda) = device() else { return };
    for channels in [1, 2, 9] {
        let channels = NonZeroUsize::new(channels).unwrap();
        let guidance = Guidance::new(3.0, (-1.0, 1.0)).unwrap().with_channels(channels);
        let options = EulerOptions { guidance, ..plain(3) };
        let error = error(&cuda, &config(1, 1), Precision::F32, &options);
        assert!(error < 5e-6, "{channels} channels: {error:e}");
    }
}

#[test]
fn a_run_can_be_stopped_and_names_the_sample_that_is_not_finite() {
    let Some(cuda) = device() else { return };
    let vb = synthetic_weights(7);
    let mut sampler = CudaSampler::new(&cuda, &config(1, 1), Precision::F32, &vb).unwrap();
    let mut stop = |step: ddt_flow::Step| match step.index {
        1 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let message = sampler.sample(&noise(2), &[0, 1], &plain(4), &mut stop).unwrap_err().to_string();
    assert!(message.contains('1') && message.contains('4'), "{message}");

    let infinite = Tensor::full(f32::INFINITY, (1, 3, 4, 6), &Device::Cpu).unwrap();
    let broken = Tensor::cat(&[noise(1), infinite], 0).unwrap();
    let error = sampler.sample(&broken, &[0, 1], &plain(4), &mut go_on).unwrap_err();
    assert!(error.to_string().contains("sample 1"), "{error}");
}

#[test]
fn modulations_that_no_step_encoded_show() {
    let Some(cuda) = device() else { return };
    let cfg = config(1, 1);
    let mut run = Run::new(&cfg, Precision::F32, &noise(1), &[0], &plain(2)).unwrap();
    run.steps.iter_mut().for_each(|it| it.kind = StepKind::SharedClass);
    let programs = Programs::new(&cfg, run.batch).unwrap();
    let vb = synthetic_weights(1);
    let weights = DeviceWeights::upload(&cuda, programs.weights(), Precision::F32, &vb).unwrap();
    let mut executor = CudaExecutor::new(&cuda, programs, &weights).unwrap();
    // The memory is full of NaN.
    let error = executor.run(&run, &mut go_on).unwrap_err().to_string();
    assert!(error.contains("sample 0"), "{error}");
    run.steps[1].set = 1;
    let error = executor.run(&run, &mut go_on).unwrap_err().to_string();
    assert!(error.contains("a set of modulations below 1, got 1"), "{error}");
}

#[test]
fn weights_and_sizes_without_a_kernel_are_refused() {
    let Some(cuda) = device() else { return };
    let misshapen = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    let misshapen = [("x_embedder.proj.weight".to_owned(), misshapen)].into();
    let misshapen = VarBuilder::from_tensors(misshapen, DType::F32, &Device::Cpu);
    let error = CudaSampler::new(&cuda, &config(1, 1), Precision::F32, &misshapen).unwrap_err();
    assert!(error.to_string().contains("x_embedder.proj.weight"), "{error}");
    let cfg = DdtConfig { hidden_size: 44, num_heads: 1, ..config(1, 1) };
    let mut sampler = CudaSampler::new(&cuda, &cfg, Precision::F32, &synthetic_weights(7)).unwrap();
    let message = sampler.sample(&noise(1), &[1], &plain(2), &mut go_on).unwrap_err().to_string();
    assert!(message.contains("hidden_size is 44"), "{message}");
}
