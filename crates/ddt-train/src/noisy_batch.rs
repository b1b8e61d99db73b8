//! A batch with times, noise and labels drawn.

use candle_core::Tensor;
use ddt_flow::{CounterNoise, LinearPath, Purpose};
use rayon::prelude::*;

use crate::{data::Batch, error::TrainError, flow_matching::FlowConfig, objective::StepAt};

/// What the network sees, and what it should answer.
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
    /// Draws for a training step: a function of the seed, the step and the position in the batch.
    ///
    /// # Errors
    /// [`TrainError::Flow`] when the time shift is not above 0; [`TrainError::Candle`] when the latents
    /// are not `(B, C, H, W)` with a label each.
    pub fn draw(cfg: &FlowConfig, num_classes: usize, batch: &Batch, at: StepAt) -> Result<Self, TrainError> {
        let address = |purpose, image| CounterNoise::new(at.seed, purpose, at.step, at.first + image);
        let images = 0..batch.labels.len() as u64;
        let time = |image| cfg.times.draw(&address(Purpose::TrainTime, image), Some(cfg.timeshift));
        let label = |(image, label): (u64, &u32)| {
            let dropped = address(Purpose::LabelDropout, image).first_uniform() < cfg.label_dropout;
            if dropped { num_classes as u32 } else { *label }
        };
        let times = images.clone().map(time).collect::<Result<_, _>>()?;
        let labels = images.zip(&batch.labels).map(label).collect();
        let latents = batch.sampled(|image| address(Purpose::Posterior, image))?;
        Self::mix(&latents, times, labels, |image| address(Purpose::TrainNoise, image))
    }

    /// Every image at its time, with noise from the address given for its position.
    pub(crate) fn mix(
        latents: &Tensor,
        times: Vec<f64>,
        labels: Vec<u32>,
        noise: impl Fn(u64) -> CounterNoise + Sync,
    ) -> Result<Self, TrainError> {
        let noise = normals_like(latents, noise)?;
        let (b, device) = (latents.dim(0)?, latents.device());
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

/// Standard normal numbers in the shape of `latents`, an address an image.
pub(crate) fn normals_like(
    latents: &Tensor,
    address: impl Fn(u64) -> CounterNoise + Sync,
) -> candle_core::Result<Tensor> {
    let size = latents.dims().iter().skip(1).product::<usize>().max(1);
    let mut values = vec![0f32; latents.elem_count()];
    let images = values.par_chunks_mut(size).enumerate();
    images.for_each(|(image, out)| address(image as u64).fill_normal(out));
    Tensor::from_vec(values, latents.dims(), latents.device())
}
