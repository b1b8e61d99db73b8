//! The published weights and their autoencoder, in the hub's cache or fetched into it.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use ddt_adapters::hub::{self, HubOptions, Progress, WeightsEntry};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::Resolution;
use crate::progress::{in_words, say};

/// The connection that expected times are given for, in bytes a second: 100 Mbit/s.
const USUAL_RATE: f64 = 12.5e6;

/// Time between lines where standard error is not a terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// DDT-XL/2 for images of this size.
#[must_use]
pub fn network(resolution: Resolution) -> &'static WeightsEntry {
    match resolution {
        Resolution::R256 => &hub::DDT_XL_R256,
        Resolution::R512 => &hub::DDT_XL_R512,
    }
}

/// The autoencoder that it was trained with.
#[must_use]
pub fn autoencoder() -> &'static WeightsEntry {
    &hub::SD_VAE_FT_EMA
}

/// Size and expected time of downloads, such as "11.3 GB, about 15 min 00 s at 100 Mbit/s".
#[must_use]
pub fn cost(entries: &[&WeightsEntry]) -> String {
    let bytes = entries.iter().map(|entry| entry.size.bytes()).sum::<u64>() as f64;
    if bytes == 0.0 {
        return "nothing".to_owned();
    }
    format!("{:.1} GB, about {} at 100 Mbit/s", bytes / 1e9, in_words(bytes / USUAL_RATE))
}

/// The path of a file in the cache, downloaded first if need be; says so before, and shows progress.
///
/// # Errors
///
/// The network fails, or may not be used.
pub fn fetch(entry: &'static WeightsEntry, options: &HubOptions) -> Result<PathBuf> {
    if let Some(path) = hub::find_cached(entry, options) {
        return Ok(path);
    }
    if !options.offline {
        say(&format!(
            "downloading {}/{} ({}) from {} into {}",
            entry.repository,
            entry.file,
            cost(&[entry]),
            options.endpoint,
            options.cache.display()
        ));
    }
    let meter = Meter::start();
    Ok(hub::fetch(entry, options, move |progress| meter.show(progress))?)
}

/// Shows a download: a bar on a terminal, else a plain line every ten seconds.
struct Meter {
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
}

impl Meter {
    fn start() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) =
                ProgressStyle::with_template("{bar:24} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
            {
                bar.set_style(style.progress_chars("━━─"));
            }
            bar
        });
        Self { bar, last_line: Mutex::new(Instant::now()) }
    }

    fn show(&self, Progress { received, total }: Progress) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(received);
            return;
        }
        let mut last_line = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last_line.elapsed() >= BETWEEN_LINES {
            *last_line = Instant::now();
            say(&format!("received {:.2} of {:.2} GB", received as f64 / 1e9, total as f64 / 1e9));
        }
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
    fn costs_name_size_and_time() {
        let entry = WeightsEntry { size: hub::FileSize::About(11_250_000_000), ..*network(Resolution::R256) };
        assert_eq!(cost(&[&entry]), "11.2 GB, about 15 min 00 s at 100 Mbit/s");
        assert_eq!(cost(&[]), "nothing");
        assert_ne!(network(Resolution::R256), network(Resolution::R512));
    }
}
