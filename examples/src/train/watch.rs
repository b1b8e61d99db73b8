//! What a run says while it goes on: lines, the log, TensorBoard's records, the plot at the end.

use std::{fs, io::Write, path::Path, time::Instant};

use anyhow::{Context, Result};
use ddt_train::{RunFolder, StepReport};
use serde_json::{Value, json};

use crate::{
    plot::{LinePlot, Series},
    progress::in_words,
    train::tensorboard::EventsFile,
};

/// Points of a curve in the plot; the means of as many stretches of the run.
const CURVE_POINTS: usize = 400;

/// A run's log and what follows from it.
pub struct Log {
    events: Option<EventsFile>,
}

impl Log {
    /// Goes on with a run's log; TensorBoard's records are written anew from what is in it.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or written.
    pub fn open(folder: &Path, tensorboard: bool) -> Result<Self> {
        let events = tensorboard.then(|| {
            let mut events = EventsFile::create(folder)?;
            records(folder)?.iter().try_for_each(|it| events.add(it))?;
            Ok::<_, anyhow::Error>(events)
        });
        Ok(Self { events: events.transpose()? })
    }

    /// Adds what a step reported. The log holds what the step alone decides, and no time of day: it is the
    /// same wherever the run was resumed.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn step(&mut self, folder: &mut RunFolder, report: &StepReport) -> Result<()> {
        let mut record = json!({
            "step": report.step, "images_seen": report.images_seen, "loss": report.loss,
            "grad_norm": report.grad_norm, "lr": report.lr, "skipped": report.skipped,
        });
        for (name, part) in &report.parts {
            record[format!("{name}_loss")] = json!(part);
        }
        self.add(folder, &record)
    }

    /// Adds the loss of the averaged weights on test images.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn test(&mut self, folder: &mut RunFolder, (step, images_seen): (u64, u64), loss: f64) -> Result<()> {
        self.add(folder, &json!({ "step": step, "images_seen": images_seen, "test_loss": loss }))
    }

    fn add(&mut self, folder: &mut RunFolder, record: &Value) -> Result<()> {
        folder.log(record)?;
        self.events.as_mut().map_or(Ok(()), |it| it.add(record))
    }
}

/// The lines of a run's log.
///
/// # Errors
///
/// A log that cannot be read, or has a line that is no JSON.
pub fn records(folder: &Path) -> Result<Vec<Value>> {
    let path = folder.join("log.jsonl");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("{}", path.display()));
    text.lines().map(parse).collect()
}

/// Draws a run's losses against images seen.
///
/// # Errors
///
/// A log that cannot be read, or holds no loss.
pub fn plot_losses(folder: &Path) -> Result<String> {
    let records = records(folder)?;
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
    let plot =
        LinePlot { title: "Loss", x_label: "images seen", y_label: "loss", log_y: false, series: &series };
    Ok(plot.svg())
}

/// Mean loss and rate since they were read last.
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

    /// Prints where the run is, and starts anew.
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

/// Writes one line to standard output; a reader that went away is no reason to stop training.
pub fn print(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
}
