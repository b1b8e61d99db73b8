//! The programs `imagenet256` and `imagenet512`: from a command line to a PNG file and an exit status.

use std::process::ExitCode;

use anyhow::Result;
use ddt_adapters::hub::{HubOptions, find_cached};

use crate::cli::{Args, Resolution};
use crate::generate::{Drawn, draw};
use crate::job::Job;
use crate::progress::{Cancel, say};
use crate::sampler_args::WeightsChoice;
use crate::weights::Origin;
use crate::{atomic_file, hub_files, page, program};

/// Runs the program; the status is 0, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C.
#[must_use]
pub fn main(resolution: Resolution) -> ExitCode {
    let args = Args::parse_for(resolution);
    program::main(args.sampler.threads, |hub, cancel| run(&args, resolution, hub, cancel))
}

/// Draws what the command line asks for, writes the file, and sums up.
///
/// # Errors
///
/// Anything that [`Job::prepare`] and [`Job::load`] find; [`Interrupted`](crate::generate::Interrupted); a full
/// disk. Nothing is written then.
pub fn run(args: &Args, resolution: Resolution, hub: &HubOptions, cancel: &Cancel) -> Result<String> {
    let job = Job::prepare(args, resolution, hub)?;
    if job.weights.origin == Origin::Demo {
        say(&about_demo(args, resolution, &job, hub));
    }
    let model = job.load()?;
    let drawn = draw(&job, &model, cancel)?;
    atomic_file::write(&job.out, &page::encode(&job, &model, &drawn.images)?)?;
    Ok(summary(&job, &drawn))
}

/// Says what is drawn instead of the program's own size, and how to get that.
fn about_demo(args: &Args, resolution: Resolution, job: &Job, hub: &HubOptions) -> String {
    let mut missing = vec![hub_files::network(resolution), hub_files::autoencoder()];
    missing.retain(|entry| find_cached(entry, hub).is_none());
    let mut text = String::new();
    if args.sampler.weights == WeightsChoice::Auto {
        for entry in &missing {
            let (repository, cache) = (entry.repository, hub.cache.display());
            text += &format!("{repository} is not in the hub's cache ({cache})\n");
        }
    }
    let (height, width) = job.weights.image_size();
    let (side, program) = (resolution.side(), resolution.program());
    text += &format!(
        "drawing with the demo network, which comes with the program: {width} x {height} pixels, {} classes\n\
         for {side} x {side} pixels and ImageNet's classes (to download: {}):\n  \
         cargo run --release --example {program} -- --weights hub",
        job.weights.classes.len(),
        hub_files::cost(&missing)
    );
    text
}

fn summary(job: &Job, drawn: &Drawn) -> String {
    let (images, seconds) = (drawn.images.len(), drawn.elapsed.as_secs_f64());
    let (encoder, steps) = (drawn.calls.encoder, drawn.calls.decoder);
    format!(
        "{images} {} in {seconds:.1} s, {:.3} images/s\n\
         encoder calls {encoder} of {steps} steps ({:.0}% saved)\n\
         wrote {}",
        if images == 1 { "image" } else { "images" },
        images as f64 / seconds.max(1e-9),
        100.0 * (1.0 - encoder as f64 / steps.max(1) as f64),
        job.out.display()
    )
}
