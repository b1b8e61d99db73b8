//! AdamW with f32 moments that can be saved.

use serde::{Deserialize, Serialize};

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

/// Both moments of one parameter, in f32 whatever the parameter's dtype.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Average gradient.
    pub first: Vec<f32>,
    /// Average squared gradient.
    pub second: Vec<f32>,
}

impl Moments {
    /// Moments before the first step.
    pub fn zeros(len: usize) -> Self {
        Self { first: vec![0.0; len], second: vec![0.0; len] }
    }
}

/// One step of AdamW on one parameter, in place; `step` counts from 1.
///
/// ```text
/// p <- p (1 - lr decay)
/// m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
/// p <- p - lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
/// ```
///
/// All slices have the parameter's length; the shortest decides.
pub fn adamw_step(
    param: &mut [f32],
    grad: &[f32],
    moments: &mut Moments,
    cfg: &AdamWConfig,
    lr: f64,
    step: u64,
) {
    let power = i32::try_from(step).unwrap_or(i32::MAX);
    let shrink = (1.0 - lr * cfg.weight_decay) as f32;
    let step_size = (lr / (1.0 - cfg.beta1.powi(power))) as f32;
    let root_correction = (1.0 - cfg.beta2.powi(power)).sqrt() as f32;
    let (beta1, beta2, eps) = (cfg.beta1 as f32, cfg.beta2 as f32, cfg.eps as f32);
    let (new1, new2) = ((1.0 - cfg.beta1) as f32, (1.0 - cfg.beta2) as f32);
    let moments = moments.first.iter_mut().zip(&mut moments.second);
    for ((p, g), (m, v)) in param.iter_mut().zip(grad).zip(moments) {
        *m = beta1 * *m + new1 * g;
        *v = beta2 * *v + new2 * g * g;
        *p = *p * shrink - step_size * *m / (v.sqrt() / root_correction + eps);
    }
}
