//! The flow-matching loss of a network on a batch.

use candle_core::{Device, Tensor};
use ddt_flow::{CounterNoise, LinearPath, Purpose, TimeSampling, flow_matching_loss};
use ddt_model::Ddt;
use rayon::prelude::*;

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
    ///
    /// # Errors
    /// [`TrainError::Flow`] when the time shift is not above 0; [`TrainError::Candle`] when the latents
    /// are not `(B, C, H, W)` with a label each.
    pub fn draw(cfg: &TrainConfig, num_classes: usize, batch: &Batch, step: u64) -> Result<Self, TrainError> {
        let at = |purpose, sample| CounterNoise::new(cfg.seed, purpose, step, sample);
        let samples = 0..batch.labels.len() as u64;
        let time = |sample| cfg.times.draw(&at(Purpose::TrainTime, sample), Some(cfg.timeshift));
        let label = |(sample, label): (u64, &u32)| {
            let dropped = at(Purpose::LabelDropout, sample).first_uniform() < cfg.label_dropout;
            if dropped { num_classes as u32 } else { *label }
        };
        let times = samples.clone().map(time).collect::<Result<_, _>>()?;
        let labels = samples.zip(&batch.labels).map(label).collect();
        Self::mix(&batch.latents, times, labels, |sample| at(Purpose::TrainNoise, sample))
    }

    /// The flow-matching loss of `network`, a scalar.
    ///
    /// # Errors
    /// [`TrainError::Model`] or [`TrainError::Candle`] when the batch does not fit the network.
    pub fn loss(&self, network: &Ddt) -> Result<Tensor, TrainError> {
        Ok(flow_matching_loss(&network.forward(&self.x_t, &self.t, &self.labels)?, &self.target)?)
    }

    /// Every sample at its time, with noise from the address given for its position.
    fn mix(
        latents: &Tensor,
        times: Vec<f64>,
        labels: Vec<u32>,
        noise: impl Fn(u64) -> CounterNoise + Sync,
    ) -> Result<Self, TrainError> {
        let (b, c, h, w) = latents.dims4()?;
        let mut values = vec![0f32; latents.elem_count()];
        let samples = values.par_chunks_mut((c * h * w).max(1)).enumerate();
        samples.for_each(|(sample, out)| noise(sample as u64).fill_normal(out));
        let device = latents.device();
        let noise = Tensor::from_vec(values, (b, c, h, w), device)?;
        let t: Vec<f32> = times.into_iter().map(|it| it as f32).collect();
        let t = Tensor::from_vec(t, b, device)?;
        Ok(Self {
            x_t: LinearPath.interpolate(latents, &noise, &t)?,
            target: LinearPath.velocity_target(latents, &noise)?,
            labels: Tensor::from_vec(labels, b, device)?,
            t,
        })
    }
}

/// The flow-matching loss over `images` images evenly spread over a dataset (all, if it has fewer), with
/// times and noise that depend on the position alone and no label dropped: comparable between networks.
///
/// Nothing drawn here is ever drawn in training, whatever its seed.
///
/// # Errors
/// [`TrainError::Data`] when `images` is 0; [`TrainError::Model`] or [`TrainError::Candle`] when the data
/// does not fit the network.
pub fn evaluate_loss(
    network: &Ddt,
    data: &LatentDataset,
    images: usize,
    times: TimeSampling,
    device: &Device,
) -> Result<f64, TrainError> {
    const BATCH: usize = 250;
    // The last two parts of an address: what is drawn, and for which image.
    let at = |what, image| CounterNoise::new(0, Purpose::Evaluation, what, image);
    let (noise, time) = (0, 1);
    // Evenly spaced: data on disk is often sorted by class.
    let count = images.min(data.len());
    let images: Vec<usize> = (0..count).map(|i| i * data.len() / count).collect();
    if images.is_empty() {
        let expected = "at least 1 image to evaluate".to_owned();
        return Err(TrainError::Data { expected, got: "0".to_owned() });
    }
    let mut sum = 0.0;
    for (i, chunk) in images.chunks(BATCH).enumerate() {
        let first = (i * BATCH) as u64;
        let batch = data.batch(chunk, device)?;
        let draw = |sample| times.draw(&at(time, first + sample), None);
        let drawn = (0..chunk.len() as u64).map(draw).collect::<Result<_, _>>()?;
        let noisy = NoisyBatch::mix(&batch.latents, drawn, batch.labels, |it| at(noise, first + it))?;
        sum += f64::from(noisy.loss(network)?.to_scalar::<f32>()?) * chunk.len() as f64;
    }
    Ok(sum / images.len() as f64)
}
