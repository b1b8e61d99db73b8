//! Noise to pictures, a batch at a time.

use std::time::Duration;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use ddt_adapters::to_rgb8;
use ddt_flow::{FlowError, StepReport};
use ddt_model::{ModelError, NetworkCalls, SampleOptions, Sampled, sample, sample_autoguided};

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

/// Draws the latents of some images of a job at once, on a GPU if one is given, calling `on_step` after each step.
///
/// Labels and noise of an image depend on itself and the seed alone; so do its pixels, but for the last bit of
/// sums that a batch of another size takes in another order.
///
/// # Errors
///
/// [`Interrupted`] if `cancel` is requested; a network that gives what is no number.
pub fn sample_batch(
    job: &Job,
    model: &Model,
    items: &[Item],
    cancel: &Cancel,
    gpu: Option<&mut Gpu>,
    on_step: &mut dyn FnMut(),
) -> Result<Sampled> {
    let options = SampleOptions {
        grid: job.grid.clone(),
        solver: &*job.solver,
        guidance: job.guidance,
        plan: model.plan.as_ref(),
    };
    let labels: Vec<u32> = items.iter().map(|item| item.label).collect();
    let noise = noise(job, items)?;
    let mut on_step = || {
        on_step();
        cancel.flow()
    };
    let mut reported = |_: &StepReport<'_>| on_step();
    let sampled = match (gpu, model.weaker.as_deref()) {
        (Some(gpu), _) => gpu.sample(job, model, &noise, &labels, &mut on_step)?,
        (None, None) => sample(&*model.network, &noise, &labels, &options, &mut reported),
        (None, Some(weaker)) => {
            sample_autoguided(&*model.network, weaker, &noise, &labels, &options, &mut reported)
        }
    };
    match sampled {
        // Also where the last step of a batch was the current one.
        _ if cancel.is_requested() => Err(Interrupted.into()),
        Err(error @ ModelError::Flow(FlowError::NonFinite { sample, .. })) => {
            Err(error).with_context(|| match items.get(sample) {
                Some(Item { label, column }) => {
                    let name = job.weights.classes.name(*label).unwrap_or_default();
                    format!("image {column} of class {label} {name}")
                }
                None => "an image".to_owned(),
            })
        }
        other => Ok(other?),
    }
}

/// Draws all images of a job, showing progress; keeps their bytes alone.
///
/// # Errors
///
/// [`Interrupted`] if `cancel` is requested; a network or decoder that gives what is no number.
pub fn draw(job: &Job, model: &Model, cancel: &Cancel) -> Result<Drawn> {
    let items = job.items();
    let (height, width) = job.weights.image_size();
    let mut gpu = Gpu::open(job, model)?;
    let _stepping = cancel.stepping();
    let mut progress = Progress::start(items.len(), job.grid.num_steps());
    let mut images = Vec::with_capacity(items.len());
    let mut calls = NetworkCalls::default();
    for batch in items.chunks(job.batch) {
        let sampled =
            sample_batch(job, model, batch, cancel, gpu.as_mut(), &mut || progress.step(batch.len()))?;
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
