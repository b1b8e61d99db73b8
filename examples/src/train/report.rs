//! What a training run shows: lines, grids of samples, the plot at the end. None of it can fail the run.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use ddt_adapters::to_rgb8;
use ddt_train::{Event, Samples, Settings, StepReport, read_log};
use serde_json::Value;

use crate::{
    grid::Grid,
    picture::Picture,
    plot::{LinePlot, Series},
    png_file,
    progress::{Counting, in_words, say},
    train::frozen,
};

/// Points of a curve in the plot, each the mean of a part of the run.
const CURVE_POINTS: usize = 400;

/// Shows the events of a run.
pub struct Report<'a> {
    settings: &'a Settings,
    encoding: Option<Counting>,
    meter: Option<Meter>,
    /// Time of the last event before the first step, from which its rate counts.
    ready: Instant,
}

impl<'a> Report<'a> {
    /// The report of a run that has not begun.
    #[must_use]
    pub fn new(settings: &'a Settings) -> Self {
        Self { settings, encoding: None, meter: None, ready: Instant::now() }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event<'_>) {
        if !matches!(event, Event::Encoding(..)) {
            self.encoding = None;
        }
        if !matches!(event, Event::Step(_)) {
            self.ready = Instant::now();
        }
        match event {
            Event::Photos(path, report) => say(&format!("{}: {report}", path.display())),
            Event::Encoding(done, total) => {
                self.encoding.get_or_insert_with(|| Counting::start("encoding", *total)).reached(*done);
            }
            Event::Skipped(skipped) => {
                say(&format!("skipped {} files that are not images:", skipped.count));
                skipped.files.iter().for_each(|it| say(&format!("  {}: {}", it.path.display(), it.reason)));
            }
            Event::Rejected(it) => say(&format!("ignored a damaged checkpoint, {it}")),
            Event::Resumed(step, images) => print(&format!("resuming from step {step}, {images} images")),
            Event::Started(path) => print(&format!("starting from {}", path.display())),
            Event::Step(report) => {
                let before = report.images_seen.saturating_sub(self.settings.train.batch_size as u64);
                let since = self.ready;
                let meter = self.meter.get_or_insert_with(|| Meter { since, ..Meter::new(before) });
                meter.add(report);
                if report.step.is_multiple_of(self.settings.watch.log_every) {
                    meter.print(report, self.settings.train.total_images);
                }
            }
            Event::TestLoss(step, loss) => {
                print(&format!("step {step:>6}  averaged weights: loss {loss:.4} on test images"));
            }
            Event::Samples(samples) => {
                let path = self.settings.run.join(format!("samples/step-{:010}.png", samples.step));
                if let Err(error) = draw(self.settings, samples, &path) {
                    say(&format!("cannot show samples: {error:#}"));
                }
            }
            Event::Saved(path) => print(&format!("saved {}", path.display())),
            Event::AverageLoss(decay, loss) => {
                print(&format!("average of decay {decay}: loss {loss:.4} on test images"));
            }
            Event::ReportFailed(error) => say(&format!("a report failed, training continues: {error}")),
            _ => {}
        }
    }

    /// Writes the plot of the run's losses, if it logged any.
    #[must_use]
    pub fn plot(&self) -> Option<PathBuf> {
        let path = self.settings.run.join("loss.svg");
        let outcome = plot_losses(&self.settings.run)
            .and_then(|it| it.map(|svg| fs::write(&path, svg).context("cannot write it")).transpose());
        match outcome {
            Ok(written) => written.map(|()| path),
            Err(error) => {
                say(&format!("{} is missing: {error:#}", path.display()));
                None
            }
        }
    }
}

/// Draws samples as a grid, a row per class.
fn draw(settings: &Settings, samples: &Samples, path: &Path) -> Result<()> {
    let decoder = frozen::decoder(&settings.autoencoder, &samples.info)?;
    let mut images = Vec::new();
    for row in samples.latents.chunk(samples.classes.len(), 0)? {
        let pixels = decoder.decode(&row)?;
        let (_, _, height, width) = pixels.dims4()?;
        for bytes in to_rgb8(&pixels)? {
            images.push(Picture::from_pixels(width, height, bytes)?);
        }
    }
    ensure!(images.len() == samples.classes.len() * samples.images_per_class, "expected a row per class");
    let title = format!("after {} images", samples.images_seen);
    let grid = Grid { row_labels: &samples.classes, images: &images, title: &title, ..Grid::default() };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    png_file::write(path, &grid.draw()?, &[("images seen", &samples.images_seen.to_string())])
}

/// Draws a run's losses against images seen; none, if it logged none.
fn plot_losses(folder: &Path) -> Result<Option<String>> {
    let records = read_log(folder)?;
    let curve = |key: &str| -> Vec<(f64, f64)> {
        let point = |it: &Value| Some((it.get("images_seen")?.as_f64()?, it.get(key)?.as_f64()?));
        let points: Vec<(f64, f64)> = records.iter().filter_map(point).collect();
        let mean = |part: &[(f64, f64)]| {
            let count = part.len() as f64;
            (part.iter().map(|it| it.0).sum::<f64>() / count, part.iter().map(|it| it.1).sum::<f64>() / count)
        };
        points.chunks(points.len().div_ceil(CURVE_POINTS).max(1)).map(mean).collect()
    };
    let series: Vec<Series> = [("training batches", "loss"), ("test images, averaged weights", "test_loss")]
        .into_iter()
        .map(|(name, key)| Series { name: name.to_owned(), points: curve(key) })
        .filter(|it| !it.points.is_empty())
        .collect();
    if series.is_empty() {
        return Ok(None);
    }
    let plot =
        LinePlot { title: "Loss", x_label: "images seen", y_label: "loss", log_y: false, series: &series };
    Ok(Some(plot.svg()))
}

/// Mean loss and rate since the last line.
pub struct Meter {
    since: Instant,
    images: u64,
    losses: Vec<f64>,
}

impl Meter {
    /// Starts the clock at some number of images seen.
    #[must_use]
    pub fn new(images_seen: u64) -> Self {
        Self { since: Instant::now(), images: images_seen, losses: Vec::new() }
    }

    /// Counts a step.
    pub fn add(&mut self, report: &StepReport) {
        self.losses.push(report.loss);
    }

    /// Prints a line, and starts anew.
    pub fn print(&mut self, report: &StepReport, total_images: u64) {
        let loss = self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64;
        let seen = report.images_seen;
        let rate = seen.saturating_sub(self.images) as f64 / self.since.elapsed().as_secs_f64().max(1e-9);
        let left = in_words(total_images.saturating_sub(seen) as f64 / rate.max(1e-9));
        print(&format!(
            "step {:>6}  images {seen:>9}  loss {loss:.4}  gradient {:.3}  lr {:.2e}  {rate:.0} images/s  {left} left",
            report.step, report.grad_norm, report.lr
        ));
        *self = Self::new(seen);
    }
}

/// Writes one line to standard output; a closed one does not stop training.
pub fn print(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
}
