//! A batch of images as bytes.

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use ddt_adapters::to_rgb8;
use ddt_flow::FlowError;
use ddt_model::{ModelError, SampleOptions, sample};

use crate::generate::{Interrupted, Item, noise};
use crate::job::{Job, Model};
use crate::progress::Cancel;

/// Draws images, telling `on_step` after each step which share of the batch is done.
///
/// Labels and noise of an image depend on itself and the seed alone; so do its pixels, but for the last bit of
/// sums that a batch of another size takes in another order.
///
/// # Shapes
///
/// `items`: B images, to B times H rows of W times red, green, blue.
///
/// # Errors
///
/// [`Interrupted`] if `cancel` is requested; a network or decoder that gives what is no number.
pub fn paint(
    job: &Job,
    model: &Model,
    items: &[Item],
    cancel: &Cancel,
    on_step: &mut dyn FnMut(f64),
) -> Result<Vec<u8>> {
    let options = SampleOptions {
        grid: job.grid.clone(),
        solver: &*job.solver,
        guidance: job.guidance,
        plan: model.plan.as_ref(),
    };
    let labels: Vec<u32> = items.iter().map(|item| item.label).collect();
    let num_steps = job.grid.num_steps().max(1) as f64;
    let mut steps = 0.0;
    let sampled = sample(&model.network, &noise(job, items)?, &labels, &options, &mut |_| {
        steps += 1.0;
        on_step(steps / num_steps * items.len() as f64);
        if cancel.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let sampled = match sampled {
        // Also where the last step of the batch was the current one.
        _ if cancel.is_requested() => return Err(Interrupted.into()),
        Err(error @ ModelError::Flow(FlowError::NonFinite { sample, .. })) => {
            return Err(error).with_context(|| match items.get(sample) {
                Some(item) => format!("image {} of class {}", item.column, item.label),
                None => "an image".to_owned(),
            });
        }
        other => other?,
    };
    Ok(to_rgb8(&model.decoder.decode(&sampled.latents)?)?.concat())
}
