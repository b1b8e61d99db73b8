//! Progress of sampling and other long work on standard error, and stopping it with Ctrl-C.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Time between lines where standard error is not a terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Exit status of a program ended by Ctrl-C, by the shell's convention.
pub const INTERRUPTED: u8 = 130;

/// Shows how far sampling is: a bar on a terminal, else a plain line every ten seconds.
///
/// The bar disappears when this is dropped.
#[derive(Debug)]
pub struct Progress {
    num_images: usize,
    num_steps: usize,
    /// Calls of `step`; each batch makes `num_steps` of them.
    steps: usize,
    /// Images times steps.
    done: usize,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts the clock for `num_images` images of `num_steps` steps each.
    #[must_use]
    pub fn start(num_images: usize, num_steps: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(num_images.saturating_mul(num_steps) as u64);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:24} {msg}") {
                bar.set_style(style.progress_chars("━━─"));
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let started = Instant::now();
        Self { num_images, num_steps, steps: 0, done: 0, started, last_line: started, bar }
    }

    /// Counts one more step of a batch of `num_images` images.
    pub fn step(&mut self, num_images: usize) {
        self.steps = self.steps.saturating_add(1);
        self.done = self.done.saturating_add(num_images);
        if let Some(bar) = &self.bar {
            bar.set_position(self.done as u64);
            bar.set_message(self.describe(self.started.elapsed()));
        } else if self.last_line.elapsed() >= BETWEEN_LINES {
            self.last_line = Instant::now();
            say(&self.describe(self.started.elapsed()));
        }
    }

    fn describe(&self, elapsed: Duration) -> String {
        let num_steps = self.num_steps.max(1);
        let total = self.num_images.saturating_mul(num_steps);
        let done = self.done.min(total);
        let (batch, step) = match self.steps.checked_sub(1) {
            Some(before) => (before / num_steps + 1, before % num_steps + 1),
            None => (1, 0),
        };
        let steps_per_s = done as f64 / elapsed.as_secs_f64().max(1e-9);
        let images_per_s = steps_per_s / num_steps as f64;
        let decimals = if images_per_s >= 1.0 { 1 } else { 3 };
        let left = match done {
            0 => "unknown time".to_owned(),
            _ => in_words((total - done) as f64 / steps_per_s),
        };
        format!("batch {batch}, step {step} of {num_steps}, {images_per_s:.decimals$} images/s, {left} left")
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Shows how much of something countable is done: a bar on a terminal, else a line every ten seconds.
///
/// The bar disappears when this is dropped.
#[derive(Debug)]
pub struct Counting {
    what: &'static str,
    total: u64,
    /// What was done when the clock started.
    first: Option<u64>,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Counting {
    /// Starts the clock for `total` things.
    #[must_use]
    pub fn start(what: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:24} {msg}") {
                bar.set_style(style.progress_chars("━━─"));
            }
            bar
        });
        let started = Instant::now();
        Self { what, total, first: None, started, last_line: started, bar }
    }

    /// Says how many are done by now.
    pub fn reached(&mut self, done: u64) {
        // What an earlier run did says nothing about the rate.
        let Some(first) = self.first else {
            (self.first, self.started) = (Some(done), Instant::now());
            return;
        };
        let rate = (done.saturating_sub(first)) as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let left = in_words(self.total.saturating_sub(done) as f64 / rate.max(1e-9));
        let line = format!("{} {done} of {}, {rate:.0} a second, {left} left", self.what, self.total);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(line);
        } else if self.last_line.elapsed() >= BETWEEN_LINES {
            self.last_line = Instant::now();
            say(&line);
        }
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Whether the user has asked to stop, and whether the program waits for that; clones share both.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    requested: Arc<AtomicBool>,
    /// Whether Ctrl-C ends the program without asking.
    at_once: Arc<AtomicBool>,
}

/// While it lives, Ctrl-C asks to stop after a step.
#[derive(Debug)]
#[must_use]
pub struct Stepping {
    at_once: Arc<AtomicBool>,
    before: bool,
}

impl Cancel {
    /// Makes Ctrl-C (and a polite `kill`) set this; a second one ends the program at once with status 130.
    ///
    /// # Errors
    ///
    /// If the program has installed a handler before.
    pub fn on_ctrl_c() -> Result<Self> {
        let cancel = Self::default();
        let handler = cancel.clone();
        ctrlc::set_handler(move || {
            if handler.interrupt() {
                say("stopped");
                std::process::exit(INTERRUPTED.into());
            }
            say("stopping after this step; press Ctrl-C again to stop at once");
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(cancel)
    }

    /// Makes already the first Ctrl-C end the program, except during [`Cancel::stepping`].
    #[must_use]
    pub fn end_at_once(self) -> Self {
        self.at_once.store(true, Ordering::Relaxed);
        self
    }

    /// Begins work that looks after each step whether to stop.
    pub fn stepping(&self) -> Stepping {
        Stepping { at_once: self.at_once.clone(), before: self.at_once.swap(false, Ordering::Relaxed) }
    }

    /// Ctrl-C was pressed; true if the program is to end now.
    fn interrupt(&self) -> bool {
        self.request() || self.at_once.load(Ordering::Relaxed)
    }

    /// Asks to stop; true if that had been asked before.
    pub fn request(&self) -> bool {
        self.requested.swap(true, Ordering::Relaxed)
    }

    /// Whether to stop.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Whether to stop, as solvers ask it after each step.
    pub fn flow(&self) -> ControlFlow<()> {
        if self.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Stepping {
    fn drop(&mut self) {
        self.at_once.store(self.before, Ordering::Relaxed);
    }
}

/// Writes one line to standard error; a closed one is no reason to fail.
pub fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").ok();
}

/// A time in at most two units.
pub(crate) fn in_words(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_steps_rate_and_time_left() {
        let mut progress = Progress::start(6, 50);
        let after = |progress: &Progress, seconds| progress.describe(Duration::from_secs_f64(seconds));
        assert_eq!(after(&progress, 0.0), "batch 1, step 0 of 50, 0.000 images/s, unknown time left");
        for _ in 0..25 {
            progress.step(4);
        }
        assert_eq!(after(&progress, 20.0), "batch 1, step 25 of 50, 0.100 images/s, 40 s left");
        for _ in 0..25 {
            progress.step(4);
        }
        assert_eq!(after(&progress, 2.0), "batch 1, step 50 of 50, 2.0 images/s, 1 s left");
        progress.step(2);
        assert!(after(&progress, 2.0).starts_with("batch 2, step 1 of 50"));
        let mut empty = Progress::start(0, 0);
        empty.step(1);
        assert!(empty.describe(Duration::ZERO).contains("batch 1, step 1 of 1"));
    }

    #[test]
    fn times_have_two_units() {
        assert_eq!(in_words(0.2), "1 s");
        assert_eq!(in_words(61.0), "1 min 01 s");
        assert_eq!(in_words(7260.0), "2 h 01 min");
        assert!(!in_words(f64::INFINITY).is_empty());
    }

    #[test]
    fn clones_share_a_request() {
        let cancel = Cancel::default();
        let other = cancel.clone();
        assert!(!other.is_requested());
        assert!(!cancel.request());
        assert!(other.is_requested());
        assert!(other.request());
    }

    #[test]
    fn the_first_ctrl_c_waits_for_steps_alone() {
        assert!(Cancel::default().end_at_once().interrupt());
        let cancel = Cancel::default().end_at_once();
        let stepping = cancel.stepping();
        assert!(!cancel.interrupt() && cancel.is_requested());
        assert!(cancel.interrupt());
        drop(stepping);
        assert!(cancel.clone().at_once.load(Ordering::Relaxed));
        drop(Cancel::default().stepping());
        assert!(!Cancel::default().interrupt());
    }

    #[test]
    fn more_steps_than_announced_do_no_harm() {
        let mut progress = Progress::start(1, 1);
        progress.step(usize::MAX);
        progress.step(3);
        assert!(progress.elapsed() < Duration::from_secs(60));
    }
}
