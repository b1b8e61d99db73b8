//! Progress of a run.

use std::{fmt, time::Duration};

use candle_core::Tensor;
use ddt_adapters::Decode;
use ddt_picture::Rgb8;

use crate::{
    config::Rounding,
    decoding::{Scale, decode},
    error::Result,
};

/// The state of a run after a step of a batch; its `Display` says it in words.
#[derive(Clone, Copy)]
pub struct Progress<'a> {
    /// Images of earlier batches, which are finished.
    pub finished: usize,
    /// Images of the whole run.
    pub total: usize,
    /// Images of this batch.
    pub batch: usize,
    /// Steps of this batch that are done, from 1.
    pub step: usize,
    /// Steps of a batch.
    pub num_steps: usize,
    /// Time since the run began.
    pub elapsed: Duration,
    pub(crate) preview: Option<Preview<'a>>,
}

/// Source of a preview.
#[derive(Clone, Copy)]
pub(crate) struct Preview<'a> {
    pub(crate) decoder: &'a dyn Decode,
    pub(crate) scale: Option<&'a Scale>,
    /// Latents before and after the step.
    pub(crate) before: &'a Tensor,
    pub(crate) after: &'a Tensor,
    /// Times before and after the step.
    pub(crate) t: f64,
    pub(crate) t_next: f64,
}

impl Progress<'_> {
    /// The same step of a batch in a run of `total` images, of which `finished` are done.
    #[must_use]
    pub fn within(self, finished: usize, total: usize) -> Self {
        Self { finished, total, ..self }
    }

    /// Work that is done, as a number of images.
    #[must_use]
    pub fn images(&self) -> f64 {
        self.finished as f64 + self.batch as f64 * self.step as f64 / self.num_steps.max(1) as f64
    }

    /// The latents of this batch as they would be if the last velocity led straight to the end, without the time that
    /// decoding takes; `None` where the latents stay on a GPU.
    ///
    /// ```text
    /// data = x + (1 - t) v,   v = (x - x_before) / (t - t_before)
    /// ```
    ///
    /// # Shapes
    /// `(batch, C, H, W)`
    ///
    /// # Errors
    /// Too little memory.
    pub fn estimate(&self) -> Result<Option<Tensor>> {
        let Some(Preview { before, after, t, t_next, .. }) = self.preview else {
            return Ok(None);
        };
        let ahead = ((after - before)? * ((1.0 - t_next) / (t_next - t)))?;
        Ok(Some((after + ahead)?))
    }

    /// The images of [`estimate`](Self::estimate).
    ///
    /// # Errors
    /// As [`Pipeline::decode`](crate::Pipeline::decode).
    pub fn preview(&self) -> Result<Option<Vec<Rgb8>>> {
        match (self.preview, self.estimate()?) {
            (Some(it), Some(latents)) => Ok(Some(decode(it.decoder, it.scale, &latents, Rounding::Nearest)?)),
            _ => Ok(None),
        }
    }
}

impl fmt::Display for Progress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.images() / self.elapsed.as_secs_f64().max(1e-9);
        let decimals = if rate >= 1.0 { 1 } else { 3 };
        let left = duration_in_words((self.total as f64 - self.images()).max(0.0) / rate);
        let (step, num_steps, finished, total) = (self.step, self.num_steps, self.finished, self.total);
        write!(
            f,
            "{finished} of {total} images, step {step} of {num_steps}, {rate:.decimals$} images/s, {left} left"
        )
    }
}

impl fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Progress({self})")
    }
}

/// A time in at most two units, rounded up.
///
/// ```
/// assert_eq!(ddt::duration_in_words(61.0), "1 min 01 s");
/// assert_eq!(ddt::duration_in_words(7260.0), "2 h 01 min");
/// ```
#[must_use]
pub fn duration_in_words(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "unknown time".to_owned();
    }
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
        let at = |finished, batch, step, seconds| {
            let elapsed = Duration::from_secs(seconds);
            Progress { finished, total: 6, batch, step, num_steps: 50, elapsed, preview: None }.to_string()
        };
        assert_eq!(at(0, 4, 25, 20), "0 of 6 images, step 25 of 50, 0.100 images/s, 40 s left");
        assert_eq!(at(0, 4, 50, 2), "0 of 6 images, step 50 of 50, 2.0 images/s, 1 s left");
        assert_eq!(at(4, 2, 50, 3), "4 of 6 images, step 50 of 50, 2.0 images/s, 0 s left");
        assert!(at(0, 4, 0, 0).ends_with("unknown time left"));
        assert_eq!(duration_in_words(0.2), "1 s");
    }
}
