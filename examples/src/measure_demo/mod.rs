//! The program `measure_demo`: a metric that needs no download, on the demo.
//!
//! [`mod@settings`] lists what is measured, [`measure`] draws and compares, [`tables`] says what came of it. Each
//! measured setting is a line of a file, so a run that was stopped goes on after it.

pub mod measure;
pub mod settings;
pub mod tables;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use ddt_adapters::hub::HubOptions;

use crate::{
    atomic_file, classifier, cli, cli::Resolution, generate::Interrupted, job::Job, program,
    progress::Cancel, results_file::ResultsFile,
};
use measure::{Bench, Measured};
use settings::{Group, settings};

/// Measures the demo network by what a small classifier sees in its images.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Args {
    /// CIFAR-10 as image files: `train/<class>/<name>.jpg` and the same under test
    #[arg(long, default_value = "out/cifar10")]
    pub photos: PathBuf,
    /// Weights of the classifier, as `train_classifier` writes them [default: those that come with the program]
    #[arg(long)]
    pub classifier: Option<PathBuf>,
    /// What to measure [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Group>,
    /// Images of each setting
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(200..=100_000))]
    pub images: u32,
    /// Steps of the sharing table
    #[arg(long, default_value_t = 50)]
    pub steps: usize,
    /// Steps of the guidance sweep
    #[arg(long, default_value_t = 25)]
    pub sweep_steps: usize,
    /// Weights to measure instead of the embedded demo
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Folder of the results; the same folder goes on with them
    #[arg(long, default_value = "out/measure-demo")]
    pub out: PathBuf,
    /// Threads to compute with; 0 is one for each core
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub threads: u32,
}

/// What was measured, by [`Setting::key`](settings::Setting::key).
pub type Results = ResultsFile<Measured>;

/// Runs the program; the status is 0, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    program::main(args.threads, |hub, cancel| run(&args, hub, cancel))
}

/// Measures what is not measured yet, and writes tables and plots of all of it.
///
/// # Errors
///
/// Photos or weights that cannot be read, a folder that cannot be written, results of other settings;
/// [`Interrupted`] after `cancel`.
pub fn run(args: &Args, hub: &HubOptions, cancel: &Cancel) -> Result<String> {
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let job = Job::prepare(&sampler(args)?, Resolution::R256, hub)?;
    let model = job.load()?;
    let (classifier, sha256) = classifier::load(args.classifier.as_deref())?;
    let header = serde_json::json!({
        "images": args.images, "steps": args.steps, "sweep_steps": args.sweep_steps,
        "network": model.identity.network, "classifier": sha256,
    });
    let mut results = Results::open(&args.out.join("results.jsonl"), &header)?;
    let groups = if args.only.is_empty() { Group::value_variants() } else { &args.only };
    let missing = settings(groups, args.steps, args.sweep_steps);
    let missing: Vec<_> = missing.into_iter().filter(|it| results.get(&it.key()).is_none()).collect();
    if !missing.is_empty() {
        let mut bench = Bench::new(args, (&job, &model), (classifier, &sha256), cancel)?;
        for setting in missing {
            if cancel.is_requested() {
                return Err(Interrupted.into());
            }
            let measured = bench.measure(&setting)?;
            crate::progress::say(&format!("{}: {measured}", setting.key()));
            results.add(setting.key(), measured)?;
        }
    }
    let text = tables::markdown(groups, args, &results)?;
    atomic_file::write(&args.out.join("tables.md"), text.as_bytes())?;
    for group in groups {
        if let Some((name, plot)) = tables::plot(*group, args, &results)? {
            atomic_file::write(&args.out.join(name), plot.as_bytes())?;
        }
    }
    Ok(format!("{text}\nwrote tables and plots to {}", args.out.display()))
}

/// The command line of a sampler with these weights.
fn sampler(args: &Args) -> Result<cli::Args> {
    let weights = args.weights.as_ref().map_or("demo".to_owned(), |it| it.display().to_string());
    let steps = args.steps.to_string();
    let out = args.out.join("unused.png").display().to_string();
    let words = ["imagenet256", "--weights", &weights, "--steps", &steps, "--out", &out];
    Ok(cli::Args::try_parse_from(words)?)
}
