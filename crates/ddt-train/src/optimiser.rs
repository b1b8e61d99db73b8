//! Optimiser: AdamW with f32 moments that can be saved, averages of the weights, and the update in place.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, Tensor, Var, bail};

use crate::{
    config::{AdamWConfig, TrainConfig},
    error::TrainError,
};

/// Both moments of one parameter, in f32 whatever its dtype.
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

/// One step of an exponential moving average, in place:
/// `average <- decay * average + (1 - decay) * param`.
pub fn average_step(average: &mut [f32], param: &[f32], decay: f64) {
    let (old, new) = (decay as f32, (1.0 - decay) as f32);
    for (a, p) in average.iter_mut().zip(param) {
        *a = old * *a + new * p;
    }
}

/// The decay of step `step` (from 1): `min(decay, (1 + step) / (10 + step))`.
///
/// Differs from the paper while `step` is below about `9 / (1 - decay)`: at 0.999, a run of 1,800 steps would
/// otherwise retain a sixth of its random start.
fn ramped(decay: f64, step: u64) -> f64 {
    decay.min((1.0 + step as f64) / (10.0 + step as f64))
}

/// Optimiser state of one parameter, in f32; `averages` in the order of the configured decays.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParameterState {
    pub(crate) moments: Moments,
    pub(crate) averages: Vec<Vec<f32>>,
}

impl ParameterState {
    pub(crate) fn new(values: Vec<f32>, cfg: &TrainConfig) -> Self {
        Self { moments: Moments::zeros(values.len()), averages: vec![values; cfg.ema_decays.len()] }
    }
}

/// The part of a step that all parameters share.
pub(crate) struct Update<'a> {
    pub(crate) adamw: &'a AdamWConfig,
    pub(crate) decays: &'a [f64],
    pub(crate) lr: f64,
    /// Updates so far, this one included.
    pub(crate) step: u64,
}

impl Update<'_> {
    fn apply(&self, param: &mut [f32], gradient: &[f32], state: &mut ParameterState) {
        adamw_step(param, gradient, &mut state.moments, self.adamw, self.lr, self.step);
        for (average, decay) in state.averages.iter_mut().zip(self.decays) {
            average_step(average, param, ramped(*decay, self.step));
        }
    }
}

/// Updates a parameter, its moments and its averages.
pub(crate) fn update_parameter(
    var: &Var,
    gradient: &[f32],
    state: &mut ParameterState,
    update: &Update<'_>,
) -> candle_core::Result<()> {
    if var.device().is_cpu() {
        let job = Mutex::new(Job { gradient, state, update });
        return var.as_tensor().inplace_op1(&InPlace(job));
    }
    let mut param: Vec<f32> = var.flatten_all()?.to_vec1()?;
    update.apply(&mut param, gradient, state);
    var.set(&Tensor::from_vec(param, var.shape(), var.device())?)
}

struct Job<'a> {
    gradient: &'a [f32],
    state: &'a mut ParameterState,
    update: &'a Update<'a>,
}

/// Updates the parameter in its own memory: no copy in, none out.
struct InPlace<'a>(Mutex<Job<'a>>);

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(values), Some((begin, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("expected a contiguous f32 parameter, got {layout:?}");
        };
        let mut job = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Job { gradient, state, update } = &mut *job;
        update.apply(&mut values[begin..end], gradient, state);
        Ok(())
    }
}

/// Calls `f` with the values of a contiguous f32 tensor, without a copy where they are in memory.
pub(crate) fn with_values<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T, TrainError> {
    let (storage, layout) = tensor.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some((begin, end))) =
        (&*storage, layout.contiguous_offsets())
    {
        return Ok(f(&values[begin..end]));
    }
    drop(storage);
    Ok(f(&tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_forget_their_start_and_long_ones_use_the_decay() {
        assert_eq!(ramped(0.9999, 1_000_000), 0.9999);
        let start_left: f64 = (1..=1800).map(|step| ramped(0.999, step)).product();
        assert!(start_left < 1e-9, "{start_left}");
    }
}
