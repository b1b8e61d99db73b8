//! A batch of images as bytes.

use anyhow::Result;
use ddt_adapters::to_rgb8;

use crate::generate::{Item, sample_batch};
use crate::gpu::Gpu;
use crate::job::{Job, Model};
use crate::progress::Cancel;

/// Draws images, on a GPU if one is given, telling `on_step` after each step how many images' worth of the batch is done.
///
/// # Shapes
///
/// `items`: B images, to B times H rows of W times red, green, blue.
///
/// # Errors
///
/// [`Interrupted`](crate::generate::Interrupted) if `cancel` is requested; a network or decoder that gives what
/// is no number.
pub fn paint(
    job: &Job,
    model: &Model,
    items: &[Item],
    gpu: Option<&mut Gpu>,
    cancel: &Cancel,
    on_step: &mut dyn FnMut(f64),
) -> Result<Vec<u8>> {
    let num_steps = job.grid.num_steps().max(1) as f64;
    let mut steps = 0.0;
    let sampled = sample_batch(job, model, items, cancel, gpu, &mut || {
        steps += 1.0;
        on_step(steps / num_steps * items.len() as f64);
    })?;
    Ok(to_rgb8(&model.decoder.decode(&sampled.latents)?)?.concat())
}
