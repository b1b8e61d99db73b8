//! Messages, progress and Ctrl-C.

use std::{
    fmt,
    io::{IsTerminal, Write},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Exit status of a program ended by Ctrl-C, by the shell's convention.
pub(crate) const INTERRUPTED: u8 = 130;

/// Time between lines of progress where standard error is not a terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Resolution of a progress bar.
const BAR: f64 = 1000.0;

/// Destination of messages and progress, and the user's request to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Terminal {
    quiet: bool,
    cancel: Cancel,
}

impl Terminal {
    pub(crate) fn new(quiet: bool, cancel: Cancel) -> Self {
        Self { quiet, cancel }
    }

    /// The same for one of several ranks: only rank 0 writes messages.
    pub(crate) fn of_rank(&self, rank: usize) -> Self {
        Self { quiet: self.quiet || rank > 0, ..self.clone() }
    }

    /// Writes a message to standard error, unless the user wants none; a closed one is no reason to fail.
    pub(crate) fn say(&self, message: impl fmt::Display) {
        if !self.quiet {
            writeln!(std::io::stderr(), "{message}").ok();
        }
    }

    /// Shows progress until the meter is dropped: a bar on a terminal, else a line every ten seconds.
    pub(crate) fn meter(&self) -> Meter {
        let bar = (!self.quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(BAR as u64);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:24} {msg}") {
                bar.set_style(style.progress_chars("━━─"));
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Meter { terminal: self.clone(), bar, last_line: Instant::now() }
    }

    /// Shows that `done` of `total` things are done, until `shown` is dropped. Other work than before starts anew.
    pub(crate) fn count(&self, shown: &mut Option<Counting>, work: &'static str, done: u64, total: u64) {
        let goes_on = |it: &&mut Counting| (it.work, it.total) == (work, total) && it.done <= done;
        match shown.as_mut().filter(goes_on) {
            Some(it) => it.done = done,
            None => {
                let (meter, since) = (self.meter(), Instant::now());
                *shown = Some(Counting { meter, work, total, done, first: done, since });
            }
        }
        if let Some(it) = shown {
            let line = it.line(it.since.elapsed());
            it.meter.show(done as f64 / total.max(1) as f64, line);
        }
    }

    /// Whether to stop.
    pub(crate) fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}

/// Progress bar of some work; it disappears when this is dropped.
#[derive(Debug)]
pub(crate) struct Meter {
    terminal: Terminal,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Meter {
    /// Shows that this share of the work, in [0, 1], is done, and `line`.
    pub(crate) fn show(&mut self, share: f64, line: impl fmt::Display) {
        if let Some(bar) = &self.bar {
            bar.set_position((share * BAR) as u64);
            bar.set_message(line.to_string());
        } else if self.last_line.elapsed() >= BETWEEN_LINES {
            self.last_line = Instant::now();
            self.terminal.say(line);
        }
    }

    /// Shows how far images are, and says whether to stop; for [`ddt::Pipeline::generate`].
    pub(crate) fn images(&mut self, progress: &ddt::Progress<'_>) -> ControlFlow<()> {
        self.show(progress.images() / progress.total.max(1) as f64, progress);
        self.terminal.cancel.flow()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A [`Meter`] of work that is counted.
#[derive(Debug)]
pub(crate) struct Counting {
    meter: Meter,
    work: &'static str,
    total: u64,
    done: u64,
    /// `done` at the first report, from which the rate counts.
    first: u64,
    since: Instant,
}

impl Counting {
    fn line(&self, elapsed: Duration) -> String {
        let Self { work, total, done, first, .. } = self;
        let per_second = (done - first) as f64 / elapsed.as_secs_f64().max(1e-9);
        let rate = match per_second {
            0.0 => return format!("{work} {done} of {total}"),
            ..1.0 => format!("{:.1} per minute", 60.0 * per_second),
            ..10.0 => format!("{per_second:.1} per second"),
            _ => format!("{per_second:.0} per second"),
        };
        let left = ddt::duration_in_words(total.saturating_sub(*done) as f64 / per_second);
        format!("{work} {done} of {total}, {rate}, {left} left")
    }
}

/// The user asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stopped")]
pub(crate) struct Interrupted;

/// Whether work ended because the user asked for it.
pub(crate) fn is_interruption(error: &anyhow::Error) -> bool {
    error.is::<Interrupted>()
        || matches!(error.downcast_ref(), Some(ddt::Error::Cancelled))
        || matches!(error.downcast_ref(), Some(ddt_train::TrainError::Stopped))
}

/// The user's request to stop; clones share it.
///
/// Ctrl-C ends the program at once, except while some work promises to look here after each step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel {
    requested: Arc<AtomicBool>,
    stepping: Arc<AtomicBool>,
}

/// While it lives, Ctrl-C asks to stop after a step.
#[derive(Debug)]
#[must_use]
pub(crate) struct Stepping {
    stepping: Arc<AtomicBool>,
    before: bool,
}

impl Cancel {
    /// Makes Ctrl-C and a polite `kill` set this.
    pub(crate) fn on_ctrl_c() -> Result<Self> {
        let cancel = Self::default();
        let handler = cancel.clone();
        let handle = move || {
            let mut stderr = std::io::stderr();
            if handler.interrupt() {
                writeln!(stderr, "stopped").ok();
                std::process::exit(INTERRUPTED.into());
            }
            writeln!(stderr, "stopping after this step; press Ctrl-C again to stop at once").ok();
        };
        ctrlc::set_handler(handle).context("cannot listen for Ctrl-C")?;
        Ok(cancel)
    }

    /// Begins work that looks after each step whether to stop.
    pub(crate) fn stepping(&self) -> Stepping {
        Stepping { stepping: self.stepping.clone(), before: self.stepping.swap(true, Ordering::Relaxed) }
    }

    /// Ctrl-C was pressed; true if the program is to end now.
    fn interrupt(&self) -> bool {
        self.requested.swap(true, Ordering::Relaxed) || !self.stepping.load(Ordering::Relaxed)
    }

    /// Whether to stop.
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// `Break` once the user has asked to stop; solvers ask after each step.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Stepping {
    fn drop(&mut self) {
        self.stepping.store(self.before, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_has_a_rate_of_its_own_work() {
        let terminal = Terminal::new(true, Cancel::default());
        let mut shown = None;
        let mut line = |work, done, total, seconds| {
            terminal.count(&mut shown, work, done, total);
            shown.as_ref().map(|it| it.line(Duration::from_secs(seconds))).unwrap_or_default()
        };
        assert_eq!(line("reading", 500, 1000, 9), "reading 500 of 1000");
        assert_eq!(line("reading", 600, 1000, 10), "reading 600 of 1000, 10 per second, 40 s left");
        // Fewer than before, or of another number: another folder.
        assert_eq!(line("reading", 0, 1000, 10), "reading 0 of 1000");
        assert_eq!(line("reading", 20, 200, 10), "reading 20 of 200");
        assert_eq!(line("reading", 22, 200, 60), "reading 22 of 200, 2.0 per minute, 1 h 29 min left");
        assert_eq!(line("drawing", 25, 200, 60), "drawing 25 of 200");
        assert_eq!(line("drawing", 85, 200, 20), "drawing 85 of 200, 3.0 per second, 39 s left");
    }

    #[test]
    fn the_first_ctrl_c_waits_for_steps_only() {
        assert!(Cancel::default().interrupt());
        let cancel = Cancel::default();
        let stepping = cancel.clone().stepping();
        assert!(!cancel.is_requested() && cancel.flow().is_continue());
        assert!(!cancel.interrupt() && cancel.is_requested() && cancel.flow().is_break());
        assert!(cancel.interrupt());
        drop(stepping);
        let inner = cancel.stepping();
        drop(inner);
        assert!(cancel.interrupt());
    }
}
