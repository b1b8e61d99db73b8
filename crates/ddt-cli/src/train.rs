//! `ddt train`: photos to weights, as a file of settings says.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use ddt::OutputFile;
use ddt_plot::{LinePlot, Series};
use ddt_train::{Settings, read_log, run as train};
use serde_json::Value;

use crate::{terminal::Terminal, training_report::TrainingReport};

const EXAMPLES: &str = "\
Examples:
  ddt train configs/cifar10.toml                     the demo, from photos in out/cifar10
  ddt train configs/cifar10.toml --images 500_000    a longer run, or more of it
The same command resumes a run that was stopped or killed, with the same numbers.";

/// Points of a curve in the plot, each the mean of a part of the run.
const CURVE_POINTS: usize = 400;

/// Trains a network as a file of settings says, or resumes its run.
///
/// Encodes the photos once, then trains on the latents, and writes the averaged weights. Ctrl-C saves and stops.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Settings of the run (TOML); the folder configs has the paper's and the demo's
    settings: PathBuf,
    /// Folder of the run, instead of the one in the settings
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Images to see in all, instead of the number in the settings; may change when a run is resumed
    #[arg(long, value_name = "N", value_parser = parse_count)]
    images: Option<u64>,
    /// The safetensors file to write the averaged weights to [default: weights.safetensors in the run's folder]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Threads to compute with; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    threads: u32,
}

/// Reads a count as settings write it: `500_000`.
fn parse_count(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| "expected a number of images, such as 500_000".to_owned())
}

pub(crate) fn run(args: &Args, terminal: &Terminal) -> Result<String> {
    ddt::start(args.threads as usize).context("--threads")?;
    let mut settings = Settings::read(&args.settings)?;
    if let Some(run) = &args.run {
        settings.run.clone_from(run);
    }
    if let Some(images) = args.images {
        settings.train.total_images = images;
        settings.train.validate().context("--images")?;
    }
    let out = match &args.out {
        Some(path) => OutputFile::new(path, &["safetensors"]).context("--out")?,
        None => OutputFile::with_folder(&settings.run.join("weights.safetensors"), &[])?,
    };
    let frozen = ddt_study::frozen_networks(&settings)?;
    let mut report = TrainingReport::new(terminal);
    let stepping = terminal.cancel().stepping();
    train(&settings, &frozen, out.target(), &mut |event| {
        report.show(&settings, &event);
        terminal.cancel().flow()
    })?;
    drop(stepping);
    let wrote = format!("wrote {}", out.path().display());
    // The weights are written: the plot may fail.
    match plot(&settings) {
        Ok(Some(path)) => Ok(format!("{wrote} and {}", path.display())),
        Ok(None) => Ok(wrote),
        Err(error) => {
            terminal.say(format!("the plot of the losses is missing: {error:#}"));
            Ok(wrote)
        }
    }
}

/// Plots the run's losses against images seen; none, if it logged none.
fn plot(settings: &Settings) -> Result<Option<PathBuf>> {
    let records = read_log(&settings.run)?;
    let curve = |key: &str| -> Vec<(f64, f64)> {
        let point = |it: &Value| Some((it.get("images_seen")?.as_f64()?, it.get(key)?.as_f64()?));
        let points: Vec<(f64, f64)> = records.iter().filter_map(point).collect();
        let mean = |part: &[(f64, f64)]| {
            let count = part.len() as f64;
            (part.iter().map(|it| it.0).sum::<f64>() / count, part.iter().map(|it| it.1).sum::<f64>() / count)
        };
        points.chunks(points.len().div_ceil(CURVE_POINTS).max(1)).map(mean).collect()
    };
    let curves = [("training batches", "loss"), ("test images, averaged weights", "test_loss")];
    let series = curves.map(|(name, key)| Series { name: name.to_owned(), points: curve(key) });
    let series: Vec<Series> = series.into_iter().filter(|it| !it.points.is_empty()).collect();
    if series.is_empty() {
        return Ok(None);
    }
    let plot =
        LinePlot { title: "Loss", x_label: "images seen", y_label: "loss", log_y: false, series: &series };
    let path = settings.run.join("loss.svg");
    fs::write(&path, plot.svg()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Some(path))
}
