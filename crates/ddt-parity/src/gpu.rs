//! Networks on a GPU, or on the CPU in its place.

use std::ops::ControlFlow;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use ddt_adapters::{Decode, KlConfig, KlDecoder, inception::FoldedInception, load_network};
use ddt_cuda::{
    Batch, Cuda, CudaExecutor, CudaInception, CudaKlDecoder, CudaSampler, DECODER_BYTES, DeviceWeights,
    EulerOptions, Precision, Programs, Run, RunStep, StepKind,
};
use ddt_flow::{Guidance, Step, TimeGrid};
use ddt_sharing::ForecastOrder;

use crate::{Comparison, Fixture, Tolerance, adapters, model};

/// Computes those outputs of a fixture that a GPU has programs for and compares them: velocities, latents of runs
/// with Euler's method, decoded pixels, and Inception's features, which are always in f32.
///
/// # Errors
/// A file that is no fixture; whatever computing fails with.
pub fn compare_on_gpu(fixture: &Fixture, cuda: &Cuda, precision: Precision) -> Result<Vec<Comparison>> {
    // bf16 keeps 8 bits: one rounding is 2^-9, and a dozen layers and steps add up.
    let within = |exact, bf16| match precision {
        Precision::F32 => exact,
        Precision::Bf16 => Tolerance::RelativeRms(bf16),
    };
    match fixture.text("kind")? {
        "ddt_forward" => forward(fixture, cuda, precision, within(Tolerance::FORWARD, 8e-2)),
        "ddt_sample" | "ddt_forecast" => sample(fixture, cuda, precision, within(Tolerance::SAMPLE, 8e-2)),
        "vae_kl" => Ok(vec![decode(fixture, cuda, precision, within(Tolerance::AUTOENCODER, 3e-2))?]),
        "inception" if precision == Precision::F32 => {
            let inception =
                CudaInception::new(cuda, &FoldedInception::synthetic(&candle_core::Device::Cpu)?)?;
            adapters::compare_features(fixture, &inception.forward(&fixture.tensor("in.image_u8")?)?)
        }
        _ => Ok(Vec::new()),
    }
}

/// A call of the network is a step of length 1; times differ between images, so each is a batch of its own.
fn forward(
    fixture: &Fixture,
    cuda: &Cuda,
    precision: Precision,
    tolerance: Tolerance,
) -> Result<Vec<Comparison>> {
    let (cfg, labels) = (fixture.sizes()?, fixture.labels("in.y")?.to_vec1()?);
    let (_, _, height, width) = fixture.tensor("in.x")?.dims4()?;
    let batch = Batch { images: 1, height, width, precision, order: ForecastOrder::Reuse };
    let programs = Programs::new(&cfg, batch)?;
    let weights = DeviceWeights::upload(cuda, programs.weights(), precision, &fixture.builder("model.")?)?;
    let mut executor = CudaExecutor::new(cuda, programs, &weights)?;
    let (mut velocity, mut shared) = (Vec::new(), Vec::new());
    for (image, &label) in labels.iter().enumerate() {
        let mut call = |x: &str, t: &str, kind: StepKind| -> Result<Tensor> {
            let noise = fixture.tensor(x)?.narrow(0, image, 1)?;
            let t: f32 = fixture.tensor(t)?.get(image)?.to_scalar()?;
            let step = Step { index: 0, t: f64::from(t), t_next: f64::from(t) + 1.0 };
            let steps =
                vec![RunStep { kind, set: 0, scalars: [t, 1.0, 1.0, 0.0], weights: [1.0, 0.0, 0.0], step }];
            let labels = vec![label, cfg.num_classes as u32];
            let run = Run { batch, noise: noise.flatten_all()?.to_vec1()?, labels, steps };
            Ok((executor.run(&run, &mut |_| ControlFlow::Continue(()))?.latents - noise)?)
        };
        velocity.push(call("in.x", "in.t", StepKind::Class)?);
        shared.push(call("in.x2", "in.t2", StepKind::SharedClass)?);
    }
    let compare = |name: &str, parts: &[Tensor]| fixture.compare(name, &Tensor::cat(parts, 0)?, tolerance);
    Ok(vec![compare("out.velocity", &velocity)?, compare("out.velocity_shared", &shared)?])
}

fn sample(
    fixture: &Fixture,
    cuda: &Cuda,
    precision: Precision,
    tolerance: Tolerance,
) -> Result<Vec<Comparison>> {
    let (noise, labels): (_, Vec<u32>) =
        (fixture.tensor("in.noise")?, fixture.labels("in.labels")?.to_vec1()?);
    let mut sampler = CudaSampler::new(cuda, &fixture.sizes()?, precision, &fixture.builder("model.")?)?;
    let runs: Vec<model::Run> = fixture.json("cases")?;
    let mut outputs = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        // Adams' method of order 1 is Euler's.
        if !["euler", "adams1"].contains(&run.solver_name()?.as_str()) {
            continue;
        }
        let plan = run.plan()?;
        let options = EulerOptions {
            grid: TimeGrid::new(run.steps, Some(run.last_step), run.timeshift)?,
            guidance: Guidance::new(run.guidance, run.interval)?,
            plan: plan.as_ref(),
        };
        let sampled = sampler.sample(&noise, &labels, &options, &mut |_| ControlFlow::Continue(()))?;
        outputs.push(fixture.compare(&format!("out.{i}"), &sampled.latents, tolerance)?);
    }
    ensure!(!outputs.is_empty(), "expected runs with Euler's method, got none");
    Ok(outputs)
}

fn decode(fixture: &Fixture, cuda: &Cuda, precision: Precision, tolerance: Tolerance) -> Result<Comparison> {
    let cfg: KlConfig = fixture.json("config")?;
    let source = fixture.checkpoint().with_prefix("model.");
    let decoder = load_network(&source, DType::F32, &Device::Cpu, KlDecoder::reads, |vb| {
        CudaKlDecoder::new(cuda, &cfg, precision, DECODER_BYTES, vb).map_err(candle_core::Error::wrap)
    })?;
    // Those of the fixture are not scaled.
    let latents = (fixture.tensor("in.latent")? * cfg.scaling_factor)?;
    fixture.compare("out.decoded", &decoder.decode(&latents)?, tolerance)
}
