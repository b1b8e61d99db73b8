//! Learning rate against images seen.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Warm-up, plateau, decay; in images, so that it does not change with the batch.
///
/// ```text
/// lr(begin..end) = peak * min(1, end / warmup) * min(1, (total - begin) / decay)
/// ```
///
/// The rise is taken at the end of a step and the fall at its beginning: neither the first nor the last
/// step of a run has a rate of zero. The paper's is a constant: no warm-up, no decay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrSchedule {
    /// Learning rate on the plateau.
    pub peak: f64,
    /// Images over which it rises from zero; 0 for none.
    pub warmup_images: u64,
    /// Images over which it falls towards zero at the end; 0 for none.
    pub decay_images: u64,
}

impl LrSchedule {
    /// The learning rate of the step that sees `images`, counted from the start of the run, of
    /// `total_images`.
    pub fn lr(&self, images: Range<u64>, total_images: u64) -> f64 {
        let ramp = |part: u64, of: u64| if of == 0 { 1.0 } else { (part as f64 / of as f64).min(1.0) };
        let left = total_images.saturating_sub(images.start);
        self.peak * ramp(images.end, self.warmup_images) * ramp(left, self.decay_images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_stays_and_falls() {
        let schedule = LrSchedule { peak: 2.0, warmup_images: 10, decay_images: 20 };
        let lr = |end| schedule.lr(end - 5..end, 100);
        assert_eq!([lr(5), lr(10), lr(85), lr(90), lr(95)], [1.0, 2.0, 2.0, 1.5, 1.0]);
        assert_eq!((lr(100), lr(105)), (0.5, 0.0));
    }

    #[test]
    fn every_step_of_a_run_moves() {
        let schedule = LrSchedule { peak: 1.0, warmup_images: 100, decay_images: 100 };
        // The last batch may reach beyond the end.
        assert!((0..15).all(|step| schedule.lr(7 * step..7 * step + 7, 100) > 0.0));
    }

    #[test]
    fn constant_without_ramps() {
        let schedule = LrSchedule { peak: 1e-4, warmup_images: 0, decay_images: 0 };
        assert_eq!(schedule.lr(0..256, 1000), 1e-4);
        assert_eq!(schedule.lr(768..1024, 1000), 1e-4);
    }
}
