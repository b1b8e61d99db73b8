//! Whole steps and whole runs of DDT-XL/2 with synthetic weights.

use std::{ops::ControlFlow, time::Instant};

use anyhow::Result;
use candle_core::{Device, Tensor};
use ddt_adapters::{KlConfig, inception::FoldedInception};
use ddt_cuda::{
    ArenaPlan, Batch, Cuda, CudaExecutor, CudaInception, CudaKlDecoder, CudaSampler, DECODER_BYTES,
    DeviceWeights, EulerOptions, Precision, Programs, StepKind, synthetic_weights,
};
use ddt_flow::{Guidance, TimeGrid, noise_batch};
use ddt_model::DdtConfig;
use ddt_sharing::{ForecastOrder, SharingPlan};

/// One figure.
pub(crate) struct Timing {
    pub(crate) name: String,
    pub(crate) images: usize,
    /// Side of the latents, or of Inception's pictures.
    pub(crate) side: usize,
    pub(crate) milliseconds: f64,
    pub(crate) arena_bytes: usize,
    pub(crate) weight_bytes: usize,
}

/// Sizes of the timed network and batches.
pub(crate) struct Scale {
    pub(crate) cfg: DdtConfig,
    pub(crate) autoencoder: KlConfig,
    /// Images that Inception sees, and their side.
    pub(crate) pictures: (usize, usize),
    /// Images and side of their latents; whole runs are of the first.
    pub(crate) batches: Vec<(usize, usize)>,
    pub(crate) steps: usize,
    pub(crate) runs: usize,
}

impl Scale {
    /// DDT-XL/2: 64 images at 256 px, one image, and 32 at 512 px.
    pub(crate) fn published() -> Result<Self> {
        let cfg = DdtConfig::preset("ddt-xl2")?;
        let autoencoder = KlConfig::sd_vae_ft_ema();
        let batches = vec![(64, 32), (1, 32), (32, 64)];
        Ok(Self { cfg, autoencoder, pictures: (64, 256), batches, steps: 250, runs: 10 })
    }

    /// The smallest sizes that go through everything.
    pub(crate) fn tiny() -> Result<Self> {
        let cfg = DdtConfig {
            hidden_size: 72,
            num_heads: 1,
            num_encoder_blocks: 1,
            num_decoder_blocks: 1,
            ..DdtConfig::preset("ddt-b2")?
        };
        let autoencoder = KlConfig {
            block_out_channels: vec![16, 32],
            layers_per_block: 1,
            norm_num_groups: 4,
            ..KlConfig::sd_vae_ft_ema()
        };
        let batches = vec![(2, 4), (1, 4)];
        Ok(Self { cfg, autoencoder, pictures: (1, 16), batches, steps: 10, runs: 1 })
    }
}

const ORDERS: [ForecastOrder; 3] = [ForecastOrder::Reuse, ForecastOrder::Linear, ForecastOrder::Quadratic];

/// End of the name of a figure that is of this order; figures of order 0 are named without it.
fn named(order: ForecastOrder) -> String {
    if order == ForecastOrder::Reuse { String::new() } else { format!(", order {order}") }
}

/// Times every kind of step at every size, and whole runs at the first.
pub(crate) fn run(cuda: &Cuda, scale: &Scale) -> Result<Vec<Timing>> {
    let (cfg, precision, source) = (&scale.cfg, Precision::Bf16, synthetic_weights(0));
    let mut timings = Vec::new();
    {
        let table = ddt_cuda::WeightTable::new(cfg);
        let weights = DeviceWeights::upload(cuda, &table, precision, &source)?;
        for &(images, latent) in &scale.batches {
            for order in ORDERS {
                let batch = Batch { images, height: latent, width: latent, precision, order };
                let mut executor = CudaExecutor::new(cuda, Programs::new(cfg, batch)?, &weights)?;
                let kinds = StepKind::ALL.into_iter();
                // The order makes a difference to steps that share, and to memory.
                for kind in kinds.filter(|it| order == ForecastOrder::Reuse || it.encode().is_none()) {
                    let milliseconds = executor.time_step(kind, order.points() - 1, scale.runs)?;
                    let name = format!("step: {}{}", kind.name(), named(order));
                    timings.push(timing(name, (images, latent), milliseconds, executor.plan()));
                }
            }
        }
    }
    timings.extend(decodes(cuda, scale)?);
    timings.push(features(cuda, scale)?);
    let Some(&(images, latent)) = scale.batches.first() else { return Ok(timings) };
    let mut sampler = CudaSampler::new(cuda, cfg, precision, &source)?;
    let rows: Vec<u64> = (0..images as u64).collect();
    let labels: Vec<u32> = rows.iter().map(|it| (it * 97 % cfg.num_classes as u64) as u32).collect();
    let noise = noise_batch(0, &rows, (cfg.in_channels, latent, latent), &Device::Cpu)?;
    let shared = SharingPlan::uniform(scale.steps, 5)?;
    let shared = ORDERS.map(|order| Some(shared.clone().with_order(order)));
    for share in [None].into_iter().chain(shared) {
        let order = share.as_ref().map_or(ForecastOrder::Reuse, SharingPlan::order);
        let batch = Batch { images, height: latent, width: latent, precision, order };
        let arena = ArenaPlan::new(&Programs::new(cfg, batch)?);
        let sharing =
            share.as_ref().map_or(String::new(), |_| format!(", sharing ratio 0.8{}", named(order)));
        let options = EulerOptions {
            grid: TimeGrid::new(scale.steps, Some(0.04), 1.0)?,
            guidance: Guidance::new(2.0, (0.3, 1.0))?,
            plan: share.as_ref(),
        };
        let mut once = || -> Result<f64> {
            let start = Instant::now();
            sampler.sample(&noise, &labels, &options, &mut |_| ControlFlow::Continue(()))?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        };
        // The first run captures and tunes.
        once()?;
        let name = format!("run: guided{sharing}, {} steps", scale.steps);
        timings.push(timing(name, (images, latent), once()?, &arena));
    }
    Ok(timings)
}

/// Times decoding a batch from host to host.
fn decodes(cuda: &Cuda, scale: &Scale) -> Result<Vec<Timing>> {
    let (cfg, vb) = (&scale.autoencoder, synthetic_weights(0));
    let decoder = CudaKlDecoder::new(cuda, cfg, Precision::Bf16, DECODER_BYTES, vb)?;
    let channels = scale.autoencoder.latent_channels;
    let run = |&(images, latent): &(usize, usize)| {
        let rows: Vec<u64> = (0..images as u64).collect();
        let latents = noise_batch(0, &rows, (channels, latent, latent), &Device::Cpu)?;
        let mut best = f64::INFINITY;
        // The first run takes memory and finds out how to convolve.
        for _ in 0..=scale.runs.min(3) {
            let start = Instant::now();
            decoder.decode_on_gpu(&latents)?;
            best = best.min(start.elapsed().as_secs_f64() * 1e3);
        }
        let sides = (latent, latent);
        let at_once = decoder.images_at_once(images, sides)?;
        Ok(Timing {
            name: format!("decode, {at_once} at once"),
            images,
            side: latent,
            milliseconds: best,
            arena_bytes: decoder.bytes(at_once, sides),
            weight_bytes: decoder.weight_bytes(),
        })
    };
    scale.batches.iter().map(run).collect()
}

/// Times Inception from host to host, with synthetic weights.
fn features(cuda: &Cuda, scale: &Scale) -> Result<Timing> {
    let network = CudaInception::new(cuda, &FoldedInception::synthetic(&candle_core::Device::Cpu)?)?;
    let side = scale.pictures.1;
    let pixels = Tensor::full(100f32, (scale.pictures.0, 3, side, side), &Device::Cpu)?;
    let mut best = f64::INFINITY;
    for _ in 0..=scale.runs.min(3) {
        let start = Instant::now();
        network.forward(&pixels)?;
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Timing {
        name: "Inception, f32, resizing on the CPU included".to_owned(),
        images: scale.pictures.0,
        side,
        milliseconds: best,
        arena_bytes: 0,
        weight_bytes: 0,
    })
}

fn timing(name: String, (images, side): (usize, usize), milliseconds: f64, plan: &ArenaPlan) -> Timing {
    let (arena_bytes, weight_bytes) = (plan.bytes(), plan.weight_bytes());
    Timing { name, images, side, milliseconds, arena_bytes, weight_bytes }
}
