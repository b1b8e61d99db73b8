//! Generates a labelled grid of class-conditional images and writes it as a PNG file.
//!
//! With DDT-XL/2 in the hub's cache (`ddt fetch ddt-xl2-256`) it shows ImageNet classes at 256 x 256 pixels, otherwise
//! the demo that comes with the library: CIFAR-10's classes at 32 x 32 pixels.
//!
//! ```sh
//! cargo run --example imagenet256
//! cargo run --example imagenet256 -- --class cat,ship --images 4 --share ratio:0.8
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks")]

use std::{
    error::Error,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Parser;
use ddt::{
    OutputFile, Progress,
    args::SampleArgs,
    hub::{Hub, Release},
};

/// Generates images of chosen classes: a row for each class, a column for each image.
#[derive(Parser)]
#[command(allow_negative_numbers = true)]
struct Args {
    /// The PNG file to write [default: out/imagenet256.png, or out/imagenet512.png]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    #[command(flatten)]
    sample: SampleArgs,
}

fn main() -> Result<(), Box<dyn Error>> {
    run(Release::DdtXl2R256)
}

/// The program, for a published network.
pub(crate) fn run(release: Release) -> Result<(), Box<dyn Error>> {
    let Args { out, sample } = Args::parse();
    sample.pipeline.threads.start()?;

    // Everything that can be wrong is found before any work.
    let out = match out {
        Some(path) => OutputFile::new(&path, &["png"])?,
        None => OutputFile::with_folder(Path::new(&format!("out/imagenet{}.png", release.side())), &["png"])?,
    };
    let hub = Hub::from_env();
    let (opened, request) = sample.open(release, &hub)?;
    if let Some(notice) = sample.pipeline.notice(&opened, release, &hub) {
        eprintln!("{notice}");
    }

    // Noise to latents, a solver step at a time; latents to pixels when a batch is complete.
    let pipeline = opened.load()?;
    let mut shown = Instant::now();
    let mut watch = |progress: &Progress| {
        if shown.elapsed() > Duration::from_secs(2) {
            eprintln!("{progress}");
            shown = Instant::now();
        }
        ControlFlow::Continue(())
    };
    let generated = pipeline.generate(&request, &mut watch)?;

    // The page carries what it was made with, so that `ddt sample --redo` can make it again.
    out.write(&generated.png()?)?;
    println!("{}\nwrote {}", generated.summary(), out.path().display());
    Ok(())
}
