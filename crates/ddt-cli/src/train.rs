//! `ddt train`: photos to weights, as a file of settings says.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use ddt::{
    OutputFile,
    args::Threads,
    duration_in_words,
    picture::{Grid, encode_png},
};
use ddt_data::Skipped;
use ddt_dist::{Group, Launch, connect};
use ddt_plot::{LinePlot, Series};
use ddt_train::{Event, FileSystem, Samples, Settings, StepReport, read_log, run as train};
use serde_json::Value;

use crate::{
    ranks::together,
    terminal::{Counting, Terminal},
};

const EXAMPLES: &str = "\
Examples:
  ddt train configs/cifar10.toml                     the demo, from photos in out/cifar10
  ddt train configs/cifar10.toml --images 500_000    a longer run, or more of it
  mpirun -n 4 ddt train settings.toml                four processes share each step's micro-batches (docs/scale.md)
The same command resumes a run that was stopped or killed, with the same numbers, and any number of processes.";

/// Points of a curve in the plot, each the mean of a part of the run.
const CURVE_POINTS: usize = 400;

/// Trains a network as a file of settings says, or resumes its run.
///
/// Encodes the photos once, then trains on the latents, and writes the averaged weights. Ctrl-C saves and stops.
///
/// With `precision = "bf16"` under `[train]` the network computes in 16 bits; its weights keep 32.
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
    #[command(flatten)]
    threads: Threads,
}

/// Reads a count as settings write it: `500_000`.
fn parse_count(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| "expected a number of images, such as 500_000".to_owned())
}

pub(crate) fn run(args: &Args, terminal: &Terminal) -> Result<String> {
    let group = connect(&Launch::from_env()?)?;
    together(group.as_ref(), run_rank(args, &group, terminal))
}

fn run_rank(args: &Args, group: &Arc<dyn Group>, of_all: &Terminal) -> Result<String> {
    let terminal = &of_all.of_rank(group.rank());
    args.threads.start()?;
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
    train(group.clone(), &FileSystem::default(), &settings, &frozen, out.target(), &mut |event| {
        match &event {
            // Each rank knows its own only.
            Event::Skipped(skipped) if group.rank() > 0 => say_skipped(skipped, of_all),
            event => report.show(&settings, event),
        }
        terminal.cancel().flow()
    })?;
    drop(stepping);
    let wrote = format!("wrote {}", out.path().display());
    if group.rank() > 0 {
        return Ok(wrote);
    }
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
    OutputFile::new(&path, &[])?.write(plot.svg().as_bytes())?;
    Ok(Some(path))
}

/// Shows the events of a training run, or of several one after the other; no failure of it fails the run.
pub(crate) struct TrainingReport<'a> {
    terminal: &'a Terminal,
    encoding: Option<Counting>,
    /// Steps since the last line; `None` before the first step.
    steps: Option<Steps>,
    /// Time of the last event before the first step, from which its rate counts.
    ready: Instant,
}

impl<'a> TrainingReport<'a> {
    pub(crate) fn new(terminal: &'a Terminal) -> Self {
        Self { terminal, encoding: None, steps: None, ready: Instant::now() }
    }

    pub(crate) fn show(&mut self, settings: &Settings, event: &Event<'_>) {
        let say = |line: String| self.terminal.say(line);
        if !matches!(event, Event::Encoding(..)) {
            self.encoding = None;
        }
        if !matches!(event, Event::Step(_)) {
            self.ready = Instant::now();
        }
        match event {
            Event::Photos(path, report) => {
                self.steps = None;
                say(format!("{}: {report}", path.display()));
            }
            Event::Encoding(done, total) => {
                self.terminal.count(&mut self.encoding, "encoding photos", *done, *total);
            }
            Event::Skipped(skipped) => say_skipped(skipped, self.terminal),
            Event::Rejected(it) => say(format!("ignored a damaged checkpoint, {it}")),
            Event::Resumed(step, images) => say(format!("resuming from step {step}, {images} images")),
            Event::Started(path) => say(format!("starting from {}", path.display())),
            Event::Step(report) => {
                let before = report.images_seen.saturating_sub(settings.train.batch_size as u64);
                let steps = self.steps.get_or_insert_with(|| Steps::new(self.ready, before));
                steps.losses.push(report.loss);
                if report.step.is_multiple_of(settings.watch.log_every) {
                    say(steps.line(report, settings.train.total_images));
                    self.steps = Some(Steps::new(Instant::now(), report.images_seen));
                }
            }
            Event::TestLoss(step, loss) => {
                say(format!("step {step:>6}  averaged weights: loss {loss:.4} on test images"));
            }
            Event::Samples(samples) => {
                let path = settings.run.join(format!("samples/step-{:010}.png", samples.step));
                if let Err(error) = draw(settings, samples, &path) {
                    say(format!("cannot show samples: {error:#}"));
                }
            }
            Event::Saved(path) => say(format!("saved {}", path.display())),
            Event::AverageLoss(decay, loss) => {
                say(format!("average of decay {decay}: loss {loss:.4} on test images"));
            }
            Event::Stopping(rank) if *rank > 0 => {
                say(format!("rank {rank} was asked to stop: all stop after this step"))
            }
            Event::ReportFailed(error) => say(format!("a report failed, training continues: {error}")),
            _ => {}
        }
    }
}

fn say_skipped(skipped: &Skipped, terminal: &Terminal) {
    let files = skipped.files.iter().map(|it| format!("\n  {}: {}", it.path.display(), it.reason));
    terminal.say(format!(
        "skipped {} files that are not images:{}",
        skipped.count,
        files.collect::<String>()
    ));
}

/// Writes samples as a grid, a row per class.
fn draw(settings: &Settings, samples: &Samples, path: &Path) -> Result<()> {
    let images = ddt_study::decode_samples(&settings.autoencoder, samples)?;
    ensure!(images.len() == samples.classes.len() * samples.images_per_class, "expected a row per class");
    let title = format!("after {} images", samples.images_seen);
    let grid = Grid { row_labels: &samples.classes, images: &images, title: &title, ..Grid::default() };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let text = [("images seen", samples.images_seen.to_string())];
    let png = encode_png(&grid.draw()?, &text.each_ref().map(|it| (it.0, it.1.as_str())))?;
    Ok(OutputFile::new(path, &[])?.write(&png)?)
}

/// Steps since a moment.
struct Steps {
    since: Instant,
    /// Images seen by then.
    images: u64,
    losses: Vec<f64>,
}

impl Steps {
    fn new(since: Instant, images: u64) -> Self {
        Self { since, images, losses: Vec::new() }
    }

    /// Mean loss and rate since the moment, and the last step.
    fn line(&self, report: &StepReport, total_images: u64) -> String {
        let loss = self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64;
        let seen = report.images_seen;
        let rate = seen.saturating_sub(self.images) as f64 / self.since.elapsed().as_secs_f64().max(1e-9);
        let left = duration_in_words(total_images.saturating_sub(seen) as f64 / rate.max(1e-9));
        format!(
            "step {:>6}  images {seen:>9}  loss {loss:.4}  gradient {:.3}  lr {:.2e}  {rate:.0} images/s  {left} left",
            report.step, report.grad_norm, report.lr
        )
    }
}
