//! Trains a network as a file of settings says, or goes on where the run was stopped.
//!
//! ```sh
//! cargo run --release --example train -- --config examples/configs/cifar10.toml
//! ```
//!
//! Encodes the photos once, then trains on the latents. Ctrl-C or SIGTERM saves and stops; killed at any
//! moment, the same command goes on with the same numbers.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use ddt_examples::{program::status, progress::Cancel, train::run};
use ddt_train::Settings;

/// Train a network, or go on with a run that was stopped.
#[derive(Parser)]
struct Args {
    /// Settings of the run; examples/configs has the paper's and the demo's
    #[arg(long)]
    config: PathBuf,
    /// Folder of the run, instead of the one in the settings
    #[arg(long)]
    run: Option<PathBuf>,
    /// Images to see in all, instead of the number in the settings; may change when a run goes on
    #[arg(long)]
    images: Option<u64>,
    /// Where to write the averaged weights; `weights.safetensors` in the run's folder without one
    #[arg(long)]
    out: Option<PathBuf>,
    /// Threads; 0 for one a core
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

fn main() -> ExitCode {
    ddt_kernels::retain_freed_memory();
    let args = Args::parse();
    status(Cancel::on_ctrl_c().and_then(|cancel| {
        rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global().context("--threads")?;
        let mut settings = Settings::read(&args.config)?;
        if let Some(run) = args.run {
            settings.run = run;
        }
        if let Some(images) = args.images {
            settings.train.total_images = images;
            settings.train.validate().context("--images")?;
        }
        let out = args.out.unwrap_or_else(|| settings.run.join("weights.safetensors"));
        run(&settings, &out, &cancel)
    }))
}
