//! Settings of the mathematics: length and steps of a run, optimiser, learning rate, loss.

use std::ops::Range;

use candle_core::DType;
use ddt_flow::{TimeSampling, shift_time};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// Length, steps and optimiser of a run; omitted settings default to the paper's values.
///
/// Length and learning rate may change when a run is resumed; all else is part of its identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Root of all randomness.
    pub seed: u64,
    /// Images per step, at most 2^20.
    pub batch_size: usize,
    /// Images that go through the network at once, their gradients added up over the step; `None` for
    /// all of them. Memory follows this number, not the batch.
    ///
    /// Gradients add up as a binary tree over the micro-batches. This order decides the bits of the result, so
    /// several processes that share the micro-batches give the same bits.
    pub micro_batch: Option<usize>,
    /// Type that the network computes in.
    pub precision: Precision,
    /// Images after which the run ends, rounded up to whole steps; at most 2^52.
    pub total_images: u64,
    /// Learning rate.
    pub lr: LrSchedule,
    /// Optimiser.
    pub adamw: AdamWConfig,
    /// Largest norm of a step's gradient; a longer one is scaled down to it. The paper has none, DiT^DH 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Decays of the averages that are kept, each updated every step; the first is the one to sample with.
    /// Early steps use less: `min(decay, (1 + step) / (10 + step))`, so that short runs forget their start.
    pub ema_decays: Vec<f64>,
}

/// Type of the activations in blocks and of the operands of their matmuls, forward and backward. Weights, their
/// gradients, optimiser, averages and, on the CPU, the tokens between DDT's blocks are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits; the weights are rounded where a matmul reads them.
    Bf16,
}

impl Precision {
    /// The same as candle's type.
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
    /// Well above any batch that fits a machine.
    pub(crate) const MAX_BATCH_SIZE: usize = 1 << 20;
    /// Well above any run; keeps counts of images exact in f64, and their products far from overflow.
    pub(crate) const MAX_IMAGES: u64 = 1 << 52;

    /// The paper's settings (Sec. 4 and appendix B), for 80 epochs of ImageNet.
    pub fn paper() -> Self {
        Self {
            seed: 0,
            batch_size: 256,
            micro_batch: None,
            precision: Precision::F32,
            total_images: 80 * 1_281_167,
            lr: LrSchedule::constant(1e-4),
            adamw: AdamWConfig::PAPER,
            clip_norm: None,
            ema_decays: vec![0.9999],
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] names the first that makes no run.
    pub fn validate(&self) -> Result<(), TrainError> {
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.adamw;
        let micro_batch = self.micro_batch.unwrap_or(self.batch_size);
        let decays = &self.ema_decays;
        let batch_fits = (1..=Self::MAX_BATCH_SIZE).contains(&self.batch_size);
        check("batch_size", batch_fits, "1 to 2^20", self.batch_size)?;
        check("micro_batch", (1..=self.batch_size).contains(&micro_batch), "1 to batch_size", micro_batch)?;
        let images_fit = (1..=Self::MAX_IMAGES).contains(&self.total_images);
        check("total_images", images_fit, "1 to 2^52", self.total_images)?;
        check("lr.peak", is_positive(self.lr.peak), "a finite number above 0", self.lr.peak)?;
        let end_fits = (0.0..=self.lr.peak).contains(&self.lr.end);
        check("lr.end", end_fits, "a number from 0 to lr.peak", self.lr.end)?;
        if let Some(norm) = self.clip_norm {
            check("clip_norm", is_positive(norm), "a finite number above 0; leave it out for none", norm)?;
        }
        check("adamw.beta1", unit(beta1), "a number in [0, 1)", beta1)?;
        check("adamw.beta2", unit(beta2), "a number in [0, 1)", beta2)?;
        // As it is used, in f32: at 0, a parameter that never had a gradient would become 0 / 0.
        check("adamw.eps", is_positive(f64::from(eps as f32)), "a number above 0 and finite in f32", eps)?;
        let decay_fits = weight_decay.is_finite() && weight_decay >= 0.0;
        check("adamw.weight_decay", decay_fits, "a finite number, 0 or above", weight_decay)?;
        let decays_fit = !decays.is_empty() && decays.iter().all(|it| unit(*it));
        check("ema_decays", decays_fit, "one or more numbers in [0, 1)", format!("{decays:?}"))
    }

    /// Images that go through the network at once.
    pub(crate) fn images_at_once(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch_size).max(1)
    }

    /// Micro-batches of a step, at least one.
    pub fn micro_batches(&self) -> usize {
        self.batch_size.div_ceil(self.images_at_once()).max(1)
    }

    /// The images of a micro-batch, as positions in its batch.
    pub(crate) fn images_of(&self, micro_batch: usize) -> Range<u64> {
        let at_once = self.images_at_once();
        let (first, end) = (micro_batch * at_once, (micro_batch + 1) * at_once);
        first as u64..end.min(self.batch_size) as u64
    }

    /// Steps of the whole run; an empty batch, which is invalid, counts as one image.
    pub fn total_steps(&self) -> u64 {
        self.total_images.div_ceil(self.batch_size.max(1) as u64)
    }

    /// Whether `other` is the same run, whatever its length and learning rate.
    pub fn same_run(&self, other: &Self) -> bool {
        let length = Self { total_images: self.total_images, lr: self.lr, ..other.clone() };
        *self == length
    }
}

/// Settings of AdamW other than the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
}

impl AdamWConfig {
    /// The paper's (appendix B): beta 0.9 and 0.95, no weight decay.
    pub const PAPER: Self = Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 };
}

/// Learning rate: warm-up, plateau, decay, in images, so that it does not change with the batch.
///
/// ```text
/// lr(begin..seen) = min(1, seen / warmup) * (end + (peak - end) * min(1, (total - begin) / decay))
/// ```
///
/// The rise is evaluated at the end of a step and the fall at its beginning, so that neither the first nor
/// the last step has a rate of zero. The paper's is constant: no warm-up, no decay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrSchedule {
    /// Learning rate on the plateau.
    pub peak: f64,
    /// Images over which it rises from zero; 0 for none.
    pub warmup_images: u64,
    /// Images over which it falls at the end; 0 for none.
    pub decay_images: u64,
    /// Learning rate that it falls towards.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub end: f64,
}

impl LrSchedule {
    /// The same learning rate at all steps.
    pub const fn constant(lr: f64) -> Self {
        Self { peak: lr, warmup_images: 0, decay_images: 0, end: 0.0 }
    }

    /// The learning rate of the step that sees `images`, counted from the start of the run, of
    /// `total_images`.
    pub fn lr(&self, images: Range<u64>, total_images: u64) -> f64 {
        let ramp = |part: u64, of: u64| if of == 0 { 1.0 } else { (part as f64 / of as f64).min(1.0) };
        let left = total_images.saturating_sub(images.start);
        let (rise, fall) = (ramp(images.end, self.warmup_images), ramp(left, self.decay_images));
        // Without an end, the bits of the product alone.
        self.peak * rise * fall + self.end * rise * (1.0 - fall)
    }
}

/// Flow-matching loss: distribution of times, label dropout and alignment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowConfig {
    /// Probability that a label becomes "no class".
    pub label_dropout: f64,
    /// Distribution of training times: `lognorm` or `uniform`.
    pub times: TimeSampling,
    /// Respacing of training times, above 1 for more of them near noise.
    pub timeshift: f64,
    /// Earliest time, before respacing; DiT^DH's is 0.001.
    #[serde(skip_serializing_if = "is_zero")]
    pub min_time: f64,
    /// Alignment, if any; a file of settings has it in a table of its own.
    #[serde(skip_deserializing)]
    pub alignment: Option<AlignmentConfig>,
}

impl FlowConfig {
    /// The paper's (Sec. 4): lognorm times, labels dropped one time in ten, no time shift; alignment as
    /// [`AlignmentConfig::PAPER`] where there are features.
    pub const PAPER: Self = Self {
        label_dropout: 0.1,
        times: TimeSampling::LogitNormal,
        timeshift: 1.0,
        min_time: 0.0,
        alignment: None,
    };

    /// A drawn time, not below [`min_time`](Self::min_time), respaced.
    pub fn respaced(&self, t: f64) -> f64 {
        shift_time(t.max(self.min_time), self.timeshift)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] names the first that makes no loss.
    pub fn validate(&self) -> Result<(), TrainError> {
        let dropout = self.label_dropout;
        check("label_dropout", (0.0..=1.0).contains(&dropout), "a number in [0, 1]", dropout)?;
        check("timeshift", is_positive(self.timeshift), "a finite number above 0", self.timeshift)?;
        check("min_time", (0.0..1.0).contains(&self.min_time), "a number in [0, 1)", self.min_time)?;
        let Some(AlignmentConfig { layer, feature_dim, weight }) = self.alignment else { return Ok(()) };
        check("alignment.layer", layer > 0, "1 or more", layer)?;
        check("alignment.feature_dim", (1..=1 << 16).contains(&feature_dim), "1 to 2^16", feature_dim)?;
        let expected = "a finite number above 0; omit alignment for none";
        check("alignment.weight", is_positive(weight), expected, weight)
    }
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self::PAPER
    }
}

/// Representation alignment: block, features and weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlignmentConfig {
    /// Block whose output is aligned, counted from 1.
    pub layer: usize,
    /// Channels of the frozen network's tokens.
    pub feature_dim: usize,
    /// Factor of the alignment loss.
    pub weight: f64,
}

impl AlignmentConfig {
    /// The paper's, for DINOv2 ViT-B/14: block 8, weight 0.5.
    pub const PAPER: Self = Self { layer: 8, feature_dim: 768, weight: 0.5 };
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

fn is_positive(x: f64) -> bool {
    x.is_finite() && x > 0.0
}

fn check(name: &str, fits: bool, expected: &str, got: impl ToString) -> Result<(), TrainError> {
    if fits { Ok(()) } else { Err(TrainError::setting(name, expected, got)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_stays_and_falls() {
        let schedule = LrSchedule { peak: 2.0, warmup_images: 10, decay_images: 20, end: 0.0 };
        let lr = |end| schedule.lr(end - 5..end, 100);
        assert_eq!([lr(5), lr(10), lr(85), lr(90), lr(95)], [1.0, 2.0, 2.0, 1.5, 1.0]);
        assert_eq!((lr(100), lr(105)), (0.5, 0.0));
        let above = LrSchedule { end: 0.5, ..schedule };
        assert_eq!((above.lr(80..85, 100), above.lr(90..95, 100), above.lr(100..105, 100)), (2.0, 1.25, 0.5));
    }

    #[test]
    fn every_step_of_a_run_moves() {
        let schedule = LrSchedule { peak: 1.0, warmup_images: 100, decay_images: 100, end: 0.0 };
        // The last batch may reach beyond the end.
        assert!((0..15).all(|step| schedule.lr(7 * step..7 * step + 7, 100) > 0.0));
    }

    #[test]
    fn constant_without_ramps() {
        let schedule = LrSchedule::constant(1e-4);
        assert_eq!(schedule.lr(0..256, 1000), 1e-4);
        assert_eq!(schedule.lr(768..1024, 1000), 1e-4);
    }
}
