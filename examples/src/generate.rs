//! Noise to pictures, a batch at a time.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use ddt_adapters::to_rgb8;
use ddt_flow::FlowError;
use ddt_model::{ModelError, NetworkCalls, SampleOptions, sample};

use crate::gpu::Gpu;
use crate::job::{Job, Model};
use crate::picture::Picture;
use crate::progress::{Cancel, Progress};

/// Numbers of samples from one class to the next; `--images` is at most this.
const SAMPLES_PER_CLASS: u64 = 1_000_000;

/// One image to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Its class.
    pub label: u32,
    /// Its column in the grid.
    pub column: u32,
}

impl Item {
    /// The number that, with the seed, fixes the image's noise: `1000000 label + column`.
    ///
    /// It depends on no other image, so asking for other classes or columns changes no picture.
    #[must_use]
    pub fn sample(self) -> u64 {
        u64::from(self.label) * SAMPLES_PER_CLASS + u64::from(self.column)
    }
}

/// What was drawn.
#[derive(Debug)]
pub struct Drawn {
    /// The images, row by row.
    pub images: Vec<Picture>,
    /// How often each half of the network ran in one batch, which is the same for all batches.
    pub calls: NetworkCalls,
    /// Time that drawing took, without reading weights.
    pub elapsed: Duration,
}

/// The user asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped; what was written before is complete")
    }
}

impl std::error::Error for Interrupted {}

/// Noise of some images.
///
/// # Shapes
///
/// `(items.len(), C, H, W)`, f32 standard normal.
///
/// # Errors
///
/// Too little memory.
pub fn noise(job: &Job, items: &[Item]) -> Result<Tensor> {
    let samples: Vec<u64> = items.iter().map(|item| item.sample()).collect();
    let (height, width) = job.weights.latent_size;
    let shape = (job.weights.config.in_channels, height, width);
    job.rng.batch(job.seed, &samples, shape, &Device::Cpu).context("the noise to start from")
}

/// Draws all images of a job, showing progress; keeps their bytes alone.
///
/// # Errors
///
/// [`Interrupted`] if `cancel` is requested; a network or decoder that gives what is no number.
pub fn draw(job: &Job, model: &Model, cancel: &Cancel) -> Result<Drawn> {
    let items = job.items();
    let (height, width) = job.weights.image_size();
    let options = SampleOptions {
        grid: job.grid.clone(),
        solver: &*job.solver,
        guidance: job.guidance,
        plan: model.plan.as_ref(),
    };
    let mut gpu = Gpu::open(job, model)?;
    let _stepping = cancel.stepping();
    let mut progress = Progress::start(items.len(), job.grid.num_steps());
    let mut images = Vec::with_capacity(items.len());
    let mut calls = NetworkCalls::default();
    for batch in items.chunks(job.batch) {
        let labels: Vec<u32> = batch.iter().map(|item| item.label).collect();
        let mut on_step = || {
            progress.step(batch.len());
            if cancel.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let noise = noise(job, batch)?;
        let sampled = match &mut gpu {
            None => sample(&model.network, &noise, &labels, &options, &mut |_| on_step()),
            Some(gpu) => gpu.sample(job, model, &noise, &labels, &mut on_step)?,
        };
        let sampled = match sampled {
            // Also where the last step of a batch was the current one.
            _ if cancel.is_requested() => return Err(Interrupted.into()),
            Err(error @ ModelError::Flow(FlowError::NonFinite { sample, .. })) => {
                let name = batch.get(sample).and_then(|item| job.weights.classes.name(item.label));
                return Err(error).with_context(|| format!("an image of {}", name.unwrap_or_default()));
            }
            other => other?,
        };
        for bytes in to_rgb8(&model.decoder.decode(&sampled.latents)?)? {
            images.push(Picture::from_pixels(width, height, bytes)?);
        }
        calls = sampled.calls;
    }
    // Also where the last batch was being decoded.
    if cancel.is_requested() {
        return Err(Interrupted.into());
    }
    Ok(Drawn { images, calls, elapsed: progress.elapsed() })
}
