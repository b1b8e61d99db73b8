//! Programs, run by the reference executor, against the network and its sampler.

use std::{collections::BTreeMap, ops::ControlFlow};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddt_cuda::parity::relative_rms;
use ddt_cuda::{
    Batch, EulerOptions, Executor, Precision, Programs, Reference, Run, StepKind, by_formula, execute,
    from_map,
};
use ddt_flow::{EULER, Guidance, TimeGrid, noise_batch};
use ddt_model::{Ddt, DdtConfig, NetworkConfig, SampleOptions, sample};
use ddt_sharing::SharingPlan;

/// Latents of 4 x 6 in patches of 2: no two sizes are equal, so no mistaken one goes unseen.
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

fn weights(cfg: &DdtConfig) -> BTreeMap<String, Tensor> {
    let network: NetworkConfig = cfg.clone().into();
    let formula = by_formula(1);
    let shapes = network.parameter_shapes().unwrap().into_iter();
    shapes.map(|(name, shape)| (name.clone(), formula(&name, &shape).unwrap())).collect()
}

fn network(cfg: &DdtConfig, weights: &BTreeMap<String, Tensor>) -> Ddt {
    let tensors = weights.clone().into_iter().collect();
    Ddt::new(cfg, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)).unwrap()
}

/// Latents of the reference executor, and of the sampler on the CPU.
fn both(cfg: &DdtConfig, precision: Precision, options: &EulerOptions<'_>) -> (Tensor, Tensor) {
    let weights = weights(cfg);
    let noise = noise_batch(3, &[0, 1, 2], (cfg.in_channels, 4, 6), &Device::Cpu).unwrap();
    let labels = [4, 0, 2];
    let run = Run::new(cfg, precision, &noise, &labels, options).unwrap();
    let programs = Programs::new(cfg, run.batch).unwrap();
    let mut reference = Reference::new(programs, &from_map(&weights)).unwrap();
    let ours = execute(&mut reference, cfg, &run, &mut |_| ControlFlow::Continue(())).unwrap();

    let EulerOptions { grid, guidance, plan } = options.clone();
    let options = SampleOptions { grid, solver: &EULER, guidance, plan };
    let network = network(cfg, &weights);
    let theirs = sample(&network, &noise, &labels, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(ours.calls, theirs.calls);
    (ours.latents, theirs.latents)
}

#[test]
fn one_step_is_one_call_of_the_network() {
    // A single Euler step is x + v(x, 0).
    let grid = TimeGrid::new(1, None, 1.0).unwrap();
    for (encoder, decoder) in [(2, 2), (1, 3), (0, 2), (2, 0)] {
        for guidance in [Guidance::none(), Guidance::new(2.5, (-1.0, 1.0)).unwrap()] {
            let options = EulerOptions { grid: grid.clone(), guidance, plan: None };
            let (ours, theirs) = both(&config(encoder, decoder), Precision::F32, &options);
            let error = relative_rms(&ours, &theirs).unwrap();
            assert!(error < 2e-6, "{encoder} + {decoder} blocks, {guidance:?}: {error:e}");
        }
    }
}

#[test]
fn whole_runs_are_those_of_the_sampler() {
    let cfg = config(2, 2);
    let guidance = Guidance::new(2.0, (0.3, 0.9)).unwrap();
    let mut kinds = [false; 5];
    for every in [1, 2, 3, 4] {
        let plan = SharingPlan::uniform(11, every).unwrap();
        for (shift, guidance) in [(1.0, guidance), (2.0, guidance), (1.0, Guidance::none())] {
            let grid = TimeGrid::new(11, Some(0.05), shift).unwrap();
            let options = EulerOptions { grid, guidance, plan: (every > 1).then_some(&plan) };
            let (ours, theirs) = both(&cfg, Precision::F32, &options);
            let error = relative_rms(&ours, &theirs).unwrap();
            assert!(error < 1e-5, "every {every}, shift {shift}, {guidance:?}: {error:e}");
            for kind in ddt_cuda::step_kinds(&options.grid, &guidance, options.plan).unwrap() {
                kinds[kind.index()] = true;
            }
        }
    }
    assert_eq!(kinds, [true; 5], "kinds of steps that ran, of {:?}", StepKind::ALL);
}

#[test]
fn sixteen_bits_stay_near() {
    let grid = TimeGrid::new(8, None, 1.0).unwrap();
    let guidance = Guidance::new(1.5, (0.2, 1.0)).unwrap();
    let plan = SharingPlan::uniform(8, 2).unwrap();
    let options = EulerOptions { grid, guidance, plan: Some(&plan) };
    let (ours, theirs) = both(&config(2, 2), Precision::Bf16, &options);
    let error = relative_rms(&ours, &theirs).unwrap();
    assert!((1e-5..2e-2).contains(&error), "{error:e}");
}

#[test]
fn guided_channels_are_limited_as_on_the_cpu() {
    let grid = TimeGrid::new(3, None, 1.0).unwrap();
    let limit = |channels: usize| {
        let channels = std::num::NonZeroUsize::new(channels).unwrap();
        let guidance = Guidance::new(3.0, (-1.0, 1.0)).unwrap().with_channels(channels);
        both(&config(1, 1), Precision::F32, &EulerOptions { grid: grid.clone(), guidance, plan: None })
    };
    for channels in [1, 2, 9] {
        let (ours, theirs) = limit(channels);
        let error = relative_rms(&ours, &theirs).unwrap();
        assert!(error < 5e-6, "{channels} channels: {error:e}");
    }
}

#[test]
fn a_run_can_be_stopped_and_says_where_numbers_end() {
    let cfg = config(1, 1);
    let weights = weights(&cfg);
    let noise = noise_batch(3, &[0, 1], (3, 4, 6), &Device::Cpu).unwrap();
    let grid = TimeGrid::new(4, None, 1.0).unwrap();
    let options = EulerOptions { grid, guidance: Guidance::none(), plan: None };
    let run = Run::new(&cfg, Precision::F32, &noise, &[0, 1], &options).unwrap();
    let mut reference = Reference::new(Programs::new(&cfg, run.batch).unwrap(), &from_map(&weights)).unwrap();
    let mut stop = |step: ddt_flow::Step| {
        if step.index == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let message = execute(&mut reference, &cfg, &run, &mut stop).unwrap_err().to_string();
    assert!(message.contains('1') && message.contains('4'), "{message}");

    let mut broken = run;
    let len = broken.noise.len();
    broken.noise[len - 1] = f32::INFINITY;
    let error = execute(&mut reference, &cfg, &broken, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("sample 1"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_as_on_the_cpu() {
    let cfg = config(1, 1);
    let grid = TimeGrid::new(2, None, 1.0).unwrap();
    let options = EulerOptions { grid, guidance: Guidance::none(), plan: None };
    let noise = Tensor::zeros((1, 3, 4, 6), DType::F32, &Device::Cpu).unwrap();
    let message = |noise: &Tensor, labels: &[u32]| {
        Run::new(&cfg, Precision::F32, noise, labels, &options).unwrap_err().to_string()
    };
    assert!(message(&noise, &[6]).contains("label 6"));
    assert!(message(&noise, &[1, 2]).contains("2"));
    let odd = Tensor::zeros((1, 3, 5, 6), DType::F32, &Device::Cpu).unwrap();
    assert!(message(&odd, &[1]).contains("multiples of 2"));
    let batch = Batch { images: 0, height: 4, width: 6, precision: Precision::F32 };
    assert!(Programs::new(&cfg, batch).unwrap_err().to_string().contains("1 to 65536"));
    let misshapen = |_: &str, _: &[usize]| Tensor::zeros(3, DType::F32, &Device::Cpu);
    let programs = Programs::new(&cfg, Batch { images: 1, ..batch }).unwrap();
    let error = Reference::new(programs, &misshapen).unwrap_err();
    assert!(error.to_string().contains("x_embedder.proj.weight"), "{error}");
}

#[test]
fn a_buffer_that_is_not_written_shows() {
    let cfg = config(1, 1);
    let noise = noise_batch(3, &[0], (3, 4, 6), &Device::Cpu).unwrap();
    let options =
        EulerOptions { grid: TimeGrid::new(2, None, 1.0).unwrap(), guidance: Guidance::none(), plan: None };
    let run = Run::new(&cfg, Precision::F32, &noise, &[0], &options).unwrap();
    let programs = Programs::new(&cfg, run.batch).unwrap();
    let mut reference = Reference::new(programs, &by_formula(1)).unwrap();
    reference.start(&run).unwrap();
    // Nothing was kept yet: the memory is full of NaN.
    reference.step(0, StepKind::SharedClass).unwrap();
    assert!(reference.latents().unwrap().iter().all(|it| it.is_nan()));
}
