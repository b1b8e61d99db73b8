//! How far a data set is, on standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use ddt_files::npz::Shard;
use indicatif::{ProgressBar, ProgressStyle};

use crate::progress::{in_words, say};

/// Time between lines where standard error is not a terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Shows images, rate and time left: a bar on a terminal, else a plain line every ten seconds.
///
/// All processes of a job are counted, from the moment this one began. The bar disappears when this is dropped.
#[derive(Debug)]
pub struct Meter {
    count: usize,
    share: Shard,
    /// Images that were finished when this began.
    before: usize,
    /// Images that are finished now.
    finished: usize,
    /// Images' worth of work on the current batch.
    painting: f64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Meter {
    /// Starts the clock for `count` images of which `before` are finished.
    #[must_use]
    pub fn start(count: usize, before: usize, share: Shard) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(count as u64);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:24} {msg}") {
                bar.set_style(style.progress_chars("━━─"));
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let started = Instant::now();
        Self { count, share, before, finished: before, painting: 0.0, started, last_line: started, bar }
    }

    /// So many images' worth of work was put into the current batch.
    pub fn painting(&mut self, images: f64) {
        self.painting = images;
        self.show();
    }

    /// So many images are finished in all, and none is begun here.
    pub fn finished(&mut self, images: usize) {
        self.finished = images;
        self.painting = 0.0;
        self.show();
    }

    fn show(&mut self) {
        let line = self.describe(self.started.elapsed());
        if let Some(bar) = &self.bar {
            bar.set_position(self.finished as u64);
            bar.set_message(line);
        } else if self.last_line.elapsed() >= BETWEEN_LINES {
            self.last_line = Instant::now();
            say(&line);
        }
    }

    fn describe(&self, elapsed: Duration) -> String {
        let done = self.finished.saturating_sub(self.before) as f64 + self.painting;
        let left = (self.count.saturating_sub(self.finished) as f64 - self.painting).max(0.0);
        let rate = done / elapsed.as_secs_f64().max(1e-9);
        let decimals = if rate >= 1.0 { 1 } else { 3 };
        let time = if done > 0.0 { in_words(left / rate) } else { "unknown time".to_owned() };
        let who = match self.share.world() {
            1 => String::new(),
            world => format!("process {} of {world}, all of them: ", self.share.rank()),
        };
        format!("{who}{} of {} images, {rate:.decimals$} images/s, {time} left", self.finished, self.count)
    }
}

impl Drop for Meter {
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
    fn lines_say_images_rate_and_time_left() {
        let mut meter = Meter::start(1000, 200, Shard::ALONE);
        let after = |meter: &Meter, seconds| meter.describe(Duration::from_secs(seconds));
        assert_eq!(after(&meter, 5), "200 of 1000 images, 0.000 images/s, unknown time left");
        meter.painting(20.0);
        assert_eq!(after(&meter, 10), "200 of 1000 images, 2.0 images/s, 6 min 30 s left");
        meter.finished(240);
        assert_eq!(after(&meter, 80), "240 of 1000 images, 0.500 images/s, 25 min 20 s left");
        meter.finished(1000);
        assert!(after(&meter, 100).ends_with("8.0 images/s, 0 s left"));
        let other = Meter::start(4, 0, Shard::new(1, 3).unwrap());
        assert!(after(&other, 1).starts_with("process 1 of 3, all of them: 0 of 4 images"));
    }
}
