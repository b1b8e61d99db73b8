//! Lines and pictures of a training run. None of them can fail the run.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use ddt::{
    OutputFile, duration_in_words,
    picture::{Grid, encode_png},
};
use ddt_train::{Event, Samples, Settings, StepReport};

use crate::terminal::{Counting, Terminal};

/// Shows the events of a training run, or of several one after the other.
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
                let start = || self.terminal.counting("encoding photos", *total);
                self.encoding.get_or_insert_with(start).reached(*done);
            }
            Event::Skipped(skipped) => {
                say(format!("skipped {} files that are not images:", skipped.count));
                skipped.files.iter().for_each(|it| say(format!("  {}: {}", it.path.display(), it.reason)));
            }
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
            Event::ReportFailed(error) => say(format!("a report failed, training continues: {error}")),
            _ => {}
        }
    }
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
