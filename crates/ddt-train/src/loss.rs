//! The flow-matching loss of a network on a batch.

use candle_core::{Device, Tensor};
use ddt_flow::{CounterNoise, LinearPath, Purpose, TimeSampling, flow_matching_loss};
use ddt_model::Ddt;

use crate::{
    config::TrainConfig,
    data::{Batch, LatentDataset},
    error::TrainError,
};

/// A batch with times, noise and labels drawn: what the network sees, and what it should answer.
#[derive(Debug, Clone)]
pub struct NoisyBatch {
    /// Noisy latents, `(B, C, H, W)`.
    pub x_t: Tensor,
    /// Times, `(B)`.
    pub t: Tensor,
    /// Labels after dropout, `(B)` u32.
    pub labels: Tensor,
    /// Velocity targets, `(B, C, H, W)`.
    pub target: Tensor,
}

impl NoisyBatch {
    /// Draws for training step `step`: a function of the seed, the step and the position in the batch.
    pub fn draw(cfg: &TrainConfig, num_classes: usize, batch: &Batch, step: u64) -> Result<Self, TrainError> {
        let draw = Draw {
            seed: cfg.seed,
            step,
            times: cfg.times,
            timeshift: cfg.timeshift,
            dropout: cfg.label_dropout,
        };
        draw.apply(num_classes, batch)
    }

    /// The flow-matching loss of `network`, a scalar.
    pub fn loss(&self, network: &Ddt) -> Result<Tensor, TrainError> {
        Ok(flow_matching_loss(&network.forward(&self.x_t, &self.t, &self.labels)?, &self.target)?)
    }
}

/// The flow-matching loss over the first `images` images of a dataset, with times and noise that
/// depend on the image alone and no label dropped: comparable between networks and batch sizes.
pub fn evaluate_loss(
    network: &Ddt,
    data: &LatentDataset,
    images: usize,
    times: TimeSampling,
    device: &Device,
) -> Result<f64, TrainError> {
    const BATCH: usize = 250;
    let images: Vec<usize> = (0..images.min(data.len())).collect();
    let mut sum = 0.0;
    for (i, chunk) in images.chunks(BATCH).enumerate() {
        let draw = Draw { seed: 0, step: i as u64, times, timeshift: 1.0, dropout: 0.0 };
        let noisy = draw.apply(network.config().num_classes, &data.batch(chunk, device)?)?;
        sum += f64::from(noisy.loss(network)?.to_scalar::<f32>()?) * chunk.len() as f64;
    }
    Ok(sum / images.len().max(1) as f64)
}

struct Draw {
    seed: u64,
    step: u64,
    times: TimeSampling,
    timeshift: f64,
    dropout: f64,
}

impl Draw {
    fn apply(&self, num_classes: usize, batch: &Batch) -> Result<NoisyBatch, TrainError> {
        let (b, c, h, w) = batch.latents.dims4()?;
        let source = |purpose, sample| CounterNoise::new(self.seed, purpose, self.step, sample as u64);
        let mut noise = Vec::with_capacity(b * c * h * w);
        let mut t = Vec::with_capacity(b);
        let mut labels = Vec::with_capacity(b);
        for (sample, &label) in batch.labels.iter().enumerate() {
            noise.extend(source(Purpose::TrainNoise, sample).normal(c * h * w));
            t.push(self.times.draw(&source(Purpose::TrainTime, sample), Some(self.timeshift))? as f32);
            let dropped = source(Purpose::LabelDropout, sample).first_uniform() < self.dropout;
            labels.push(if dropped { num_classes as u32 } else { label });
        }
        let device = batch.latents.device();
        let noise = Tensor::from_vec(noise, (b, c, h, w), device)?;
        let t = Tensor::from_vec(t, b, device)?;
        Ok(NoisyBatch {
            x_t: LinearPath.interpolate(&batch.latents, &noise, &t)?,
            target: LinearPath.velocity_target(&batch.latents, &noise)?,
            labels: Tensor::from_vec(labels, b, device)?,
            t,
        })
    }
}
