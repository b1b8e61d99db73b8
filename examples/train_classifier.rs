//! Trains the small classifier that samples of CIFAR-10 are measured with, or goes on where it was stopped.
//!
//! ```sh
//! cargo run --release --example train_classifier
//! ```

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use ddt_examples::{
    classifier::program::{Job, run},
    program::status,
    progress::Cancel,
};

/// Train the classifier that samples are measured with.
#[derive(Parser)]
struct Args {
    /// CIFAR-10 as image files: `train/<class>/<name>.jpg` and the same under test
    #[arg(long, default_value = "out/cifar10")]
    photos: PathBuf,
    /// Folder of the run; the same folder goes on with the run in it
    #[arg(long, default_value = "out/train-classifier")]
    run: PathBuf,
    /// Where to write the weights
    #[arg(long, default_value = "out/cifar10-classifier.safetensors")]
    out: PathBuf,
    /// Passes through the training photos
    #[arg(long, default_value_t = 8)]
    epochs: u64,
    /// Root of all randomness
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads; 0 for one a core
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

fn main() -> ExitCode {
    ddt_kernels::retain_freed_memory();
    let args = Args::parse();
    let job =
        Job { photos: &args.photos, run: &args.run, out: &args.out, epochs: args.epochs, seed: args.seed };
    status(Cancel::on_ctrl_c().and_then(|cancel| {
        rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global().context("--threads")?;
        run(&job, &cancel)
    }))
}
