//! How a training run goes: its length, its steps, its optimiser.

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::{adamw::AdamWConfig, error::TrainError, schedule::LrSchedule};

/// Settings of a training run; what is left away in a file is the paper's.
///
/// Its length and learning rate may change when it is resumed; all else is part of its identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Root of all randomness.
    pub seed: u64,
    /// Images a step, at most 2^20.
    pub batch_size: usize,
    /// Images that go through the network at once, their gradients added up over the step; `None` for
    /// all of them. Memory follows this number, not the batch.
    pub micro_batch: Option<usize>,
    /// Type of the weights that the network computes with.
    pub precision: Precision,
    /// Images after which the run ends, rounded up to whole steps; at most 2^52.
    pub total_images: u64,
    /// Learning rate.
    pub lr: LrSchedule,
    /// Optimiser.
    pub adamw: AdamWConfig,
    /// Decays of the averages that are kept, each updated every step; the first is the one to sample with.
    /// Early steps use less: `min(decay, (1 + step) / (10 + step))`, so that short runs forget their start.
    pub ema_decays: Vec<f64>,
}

/// Type of the weights in forward and backward; optimiser and averages are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits; the optimiser moves f32 masters, which are rounded after each step.
    Bf16,
}

impl Precision {
    /// candle's name.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// The paper's settings, [`TrainConfig::paper`].
impl Default for TrainConfig {
    fn default() -> Self {
        Self::paper()
    }
}

impl TrainConfig {
    /// Far above any batch that fits a machine.
    pub(crate) const MAX_BATCH_SIZE: usize = 1 << 20;
    /// Far above any run; keeps counts of images exact in f64, and their products far from overflow.
    pub(crate) const MAX_IMAGES: u64 = 1 << 52;

    /// The paper's settings (Sec. 4 and appendix B), for 80 epochs of ImageNet.
    pub fn paper() -> Self {
        Self {
            seed: 0,
            batch_size: 256,
            micro_batch: None,
            precision: Precision::F32,
            total_images: 80 * 1_281_167,
            lr: LrSchedule { peak: 1e-4, warmup_images: 0, decay_images: 0 },
            adamw: AdamWConfig::PAPER,
            ema_decays: vec![0.9999],
        }
    }

    /// Whether these settings make a run.
    ///
    /// # Errors
    /// [`TrainError::Config`] names the first that does not.
    pub fn validate(&self) -> Result<(), TrainError> {
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let checks = [
            ("batch_size", (1..=Self::MAX_BATCH_SIZE).contains(&self.batch_size), "1 to 2^20"),
            (
                "micro_batch",
                self.micro_batch.is_none_or(|it| (1..=self.batch_size).contains(&it)),
                "1 to batch_size",
            ),
            ("total_images", (1..=Self::MAX_IMAGES).contains(&self.total_images), "1 to 2^52"),
            ("lr.peak", self.lr.peak.is_finite() && self.lr.peak > 0.0, "a finite number above 0"),
            ("adamw.beta1", unit(self.adamw.beta1), "in [0, 1)"),
            ("adamw.beta2", unit(self.adamw.beta2), "in [0, 1)"),
            // As it is used, in f32: at 0, a parameter that never had a gradient would become 0 / 0.
            (
                "adamw.eps",
                (self.adamw.eps as f32).is_finite() && self.adamw.eps as f32 > 0.0,
                "a number above 0 and finite in f32",
            ),
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
        ];
        match checks.iter().find(|it| !it.1) {
            None => Ok(()),
            Some((name, _, expected)) => Err(TrainError::Config { name, expected }),
        }
    }

    /// Images that go through the network at once.
    pub(crate) fn images_at_once(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch_size).max(1)
    }

    /// Steps of the whole run; an empty batch, which makes no run, counts as one image.
    pub fn total_steps(&self) -> u64 {
        self.total_images.div_ceil(self.batch_size.max(1) as u64)
    }

    /// Whether `other` is the same run, of any length and learning rate.
    pub fn same_run(&self, other: &Self) -> bool {
        let length = Self { total_images: self.total_images, lr: self.lr, ..other.clone() };
        *self == length
    }
}
