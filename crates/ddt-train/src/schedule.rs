//! Learning rate against images seen.

use serde::{Deserialize, Serialize};

/// Warm-up, plateau, decay; in images, so that it does not change with the batch.
///
/// ```text
/// lr(n) = peak * min(1, n / warmup) * min(1, (total - n) / decay)
/// ```
///
/// The paper's is a constant: no warm-up, no decay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrSchedule {
    /// Learning rate on the plateau.
    pub peak: f64,
    /// Images over which it rises from zero; 0 for none.
    pub warmup_images: u64,
    /// Images over which it falls to zero at the end; 0 for none.
    pub decay_images: u64,
}

impl LrSchedule {
    /// The learning rate of the step that ends at `images_seen` of `total_images`.
    pub fn lr(&self, images_seen: u64, total_images: u64) -> f64 {
        let ramp = |done: u64, over: u64| if over == 0 { 1.0 } else { (done as f64 / over as f64).min(1.0) };
        let left = total_images.saturating_sub(images_seen);
        self.peak * ramp(images_seen, self.warmup_images) * ramp(left, self.decay_images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_stays_and_falls() {
        let schedule = LrSchedule { peak: 2.0, warmup_images: 10, decay_images: 20 };
        let lr = |n| schedule.lr(n, 100);
        assert_eq!(
            [lr(0), lr(5), lr(10), lr(80), lr(90), lr(100), lr(101)],
            [0.0, 1.0, 2.0, 2.0, 1.0, 0.0, 0.0]
        );
    }

    #[test]
    fn constant_without_ramps() {
        let schedule = LrSchedule { peak: 1e-4, warmup_images: 0, decay_images: 0 };
        assert_eq!(schedule.lr(256, 1000), 1e-4);
        assert_eq!(schedule.lr(1000, 1000), 1e-4);
    }
}
