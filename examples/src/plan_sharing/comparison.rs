//! What plans do to images: their latents, pictures and time, beside those without sharing.

use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::{DType, Tensor};
use ddt_adapters::to_rgb8;
use ddt_model::{SampleOptions, sample};
use ddt_sharing::SharingPlan;

use crate::generate::{Interrupted, Item, noise};
use crate::job::{Job, Model};
use crate::picture::Picture;
use crate::progress::{Cancel, Progress};

/// One way to draw the images.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Where the encoder runs; `None` is at every step.
    pub plan: Option<&'a SharingPlan>,
    /// Whether pictures are wanted, or their latents' error alone.
    pub pictures: bool,
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Time from noise to latents, summed over all images.
    pub elapsed: Duration,
    /// Mean over images of [`relative_error`] to the first run.
    pub latent_error: f64,
    /// The images, if they were wanted.
    pub pictures: Vec<Picture>,
}

/// Draws the same images in several ways, and compares each with the first; shows progress.
///
/// Every batch is drawn in all ways before the next one, so that a machine that is busy for a while slows all
/// ways alike.
///
/// # Errors
///
/// [`Interrupted`] if `cancel` is requested; a network or decoder that gives what is no number.
pub fn compare(
    job: &Job,
    model: &Model,
    items: &[Item],
    runs: &[Run<'_>],
    cancel: &Cancel,
) -> Result<Vec<Outcome>> {
    let (height, width) = job.weights.image_size();
    let _stepping = cancel.stepping();
    let mut progress = Progress::start(items.len() * runs.len(), job.grid.num_steps());
    let mut outcomes = vec![Outcome::default(); runs.len()];
    for batch in items.chunks(job.batch) {
        let labels: Vec<u32> = batch.iter().map(|item| item.label).collect();
        let noise = noise(job, batch)?;
        let mut reference = None;
        for (run, outcome) in runs.iter().zip(&mut outcomes) {
            let options = SampleOptions {
                grid: job.grid.clone(),
                solver: &*job.solver,
                guidance: job.guidance,
                plan: run.plan,
            };
            let started = Instant::now();
            let sampled = sample(&*model.network, &noise, &labels, &options, &mut |_| {
                progress.step(batch.len());
                cancel.flow()
            });
            outcome.elapsed += started.elapsed();
            if cancel.is_requested() {
                return Err(Interrupted.into());
            }
            let latents = sampled?.latents;
            let reference = reference.get_or_insert_with(|| latents.clone());
            let errors = relative_error(&latents, reference)?;
            outcome.latent_error += errors.iter().sum::<f64>() / items.len() as f64;
            if run.pictures {
                for bytes in to_rgb8(&model.decoder.decode(&latents)?)? {
                    outcome.pictures.push(Picture::from_pixels(width, height, bytes)?);
                }
            }
        }
    }
    // Also where the last batch was being decoded.
    if cancel.is_requested() {
        return Err(Interrupted.into());
    }
    Ok(outcomes)
}

/// The relative root mean square error of each image's latents.
///
/// ```text
/// |latents - reference| / |reference|
/// ```
///
/// # Shapes
///
/// `(B, ...)` each -> `B` numbers.
///
/// # Errors
///
/// Different shapes.
pub fn relative_error(latents: &Tensor, reference: &Tensor) -> candle_core::Result<Vec<f64>> {
    let square_sums = |x: &Tensor| x.to_dtype(DType::F64)?.sqr()?.flatten_from(1)?.sum(1)?.to_vec1::<f64>();
    let errors = square_sums(&(latents - reference)?)?;
    let lengths = square_sums(reference)?;
    Ok(errors.iter().zip(&lengths).map(|(error, length)| (error / length).sqrt()).collect())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn errors_are_relative_and_one_an_image() {
        let tensor = |values: [f32; 4]| Tensor::from_slice(&values, (2, 1, 1, 2), &Device::Cpu).unwrap();
        let errors = relative_error(&tensor([3.0, 4.5, 0.0, 2.0]), &tensor([3.0, 4.0, 0.0, 2.0])).unwrap();
        assert_eq!(errors, [0.1, 0.0]);
        let one = Tensor::zeros((1, 1, 1, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(relative_error(&one, &tensor([1.0; 4])).is_err());
    }
}
