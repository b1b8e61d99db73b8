//! What a training run is.

use ddt_flow::TimeSampling;
use serde::{Deserialize, Serialize};

use crate::{adamw::AdamWConfig, error::TrainError, schedule::LrSchedule};

/// Settings of a training run. Its length and learning rate may change when it is resumed; all else
/// is part of its identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Root of all randomness.
    pub seed: u64,
    /// Images a step.
    pub batch_size: usize,
    /// Images after which the run ends, rounded up to whole steps.
    pub total_images: u64,
    /// Learning rate.
    pub lr: LrSchedule,
    /// Optimiser.
    pub adamw: AdamWConfig,
    /// Decays of the averages that are kept, each updated every step; the first is the one to sample with.
    pub ema_decays: Vec<f64>,
    /// Probability that a label becomes "no class".
    pub label_dropout: f64,
    /// Distribution of training times.
    pub times: TimeSampling,
    /// Respacing of training times, above 1 for more of them near noise.
    pub timeshift: f64,
}

impl TrainConfig {
    /// The paper's settings (Sec. 4 and appendix B), for 80 epochs of ImageNet.
    pub fn paper() -> Self {
        Self {
            seed: 0,
            batch_size: 256,
            total_images: 80 * 1_281_167,
            lr: LrSchedule { peak: 1e-4, warmup_images: 0, decay_images: 0 },
            adamw: AdamWConfig::PAPER,
            ema_decays: vec![0.9999],
            label_dropout: 0.1,
            times: TimeSampling::LogitNormal,
            timeshift: 1.0,
        }
    }

    /// Whether these settings make a run.
    ///
    /// # Errors
    /// [`TrainError::Config`] names the first that does not.
    pub fn validate(&self) -> Result<(), TrainError> {
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let checks = [
            ("batch_size", self.batch_size > 0, "at least 1"),
            ("total_images", self.total_images > 0, "at least 1"),
            ("lr.peak", self.lr.peak.is_finite() && self.lr.peak > 0.0, "a finite number above 0"),
            ("adamw.beta1", unit(self.adamw.beta1), "in [0, 1)"),
            ("adamw.beta2", unit(self.adamw.beta2), "in [0, 1)"),
            ("adamw.eps", self.adamw.eps.is_finite() && self.adamw.eps > 0.0, "a finite number above 0"),
            (
                "adamw.weight_decay",
                self.adamw.weight_decay.is_finite() && self.adamw.weight_decay >= 0.0,
                "a finite number, 0 or above",
            ),
            (
                "ema_decays",
                !self.ema_decays.is_empty() && self.ema_decays.iter().all(|it| unit(*it)),
                "one or more in [0, 1)",
            ),
            ("label_dropout", (0.0..=1.0).contains(&self.label_dropout), "in [0, 1]"),
            ("timeshift", self.timeshift.is_finite() && self.timeshift > 0.0, "a finite number above 0"),
        ];
        match checks.iter().find(|it| !it.1) {
            None => Ok(()),
            Some((name, _, expected)) => Err(TrainError::Config { name, expected }),
        }
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.total_images.div_ceil(self.batch_size as u64)
    }

    /// Whether `other` is the same run, of any length and learning rate.
    pub fn same_run(&self, other: &Self) -> bool {
        let length = Self { total_images: self.total_images, lr: self.lr, ..other.clone() };
        *self == length
    }
}
