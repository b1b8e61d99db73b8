//! How far a part of an evaluation is, on standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::progress::{in_words, say};

/// Time between lines where standard error is not a terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Shows how much is done, the rate and the time left: a bar on a terminal, else a plain line every ten
/// seconds. The bar disappears when this is dropped.
#[derive(Debug)]
pub struct Bar {
    what: String,
    total: usize,
    unit: &'static str,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Starts the clock for `total` of a unit.
    #[must_use]
    pub fn start(what: &str, total: usize, unit: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:24} {msg}") {
                bar.set_style(style.progress_chars("━━─"));
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar.set_message(what.to_owned());
            bar
        });
        let started = Instant::now();
        Self { what: what.to_owned(), total, unit, started, last_line: started, bar }
    }

    /// So much is done in all.
    pub fn set(&mut self, done: usize) {
        let line = self.describe(done, self.started.elapsed());
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            bar.set_message(line);
        } else if self.last_line.elapsed() >= BETWEEN_LINES {
            self.last_line = Instant::now();
            say(&line);
        }
    }

    fn describe(&self, done: usize, elapsed: Duration) -> String {
        let Self { what, total, unit, .. } = self;
        let rate = done as f64 / elapsed.as_secs_f64().max(1e-9);
        let left = match done {
            0 => "unknown time".to_owned(),
            _ => in_words(total.saturating_sub(done) as f64 / rate),
        };
        format!("{what}: {done} of {total} {unit}, {rate:.1} {unit}/s, {left} left")
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_rate_and_time_left() {
        let bar = Bar::start("features of samples", 300, "images");
        let line = bar.describe(100, Duration::from_secs(50));
        assert_eq!(line, "features of samples: 100 of 300 images, 2.0 images/s, 1 min 40 s left");
        assert!(bar.describe(0, Duration::ZERO).ends_with("unknown time left"));
        assert!(bar.describe(400, Duration::from_secs(1)).ends_with("0 s left"));
    }
}
