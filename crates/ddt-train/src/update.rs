//! One step of one parameter.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, Var, bail};

use crate::{
    adamw::{AdamWConfig, adamw_step},
    average::{average_step, ramped},
    error::TrainError,
    gradients::with_values,
    trainer::ParameterState,
};

/// What a step is for every parameter.
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

/// Moves a parameter, its moments and its averages.
pub(crate) fn update_parameter(
    var: &Var,
    gradient: &Tensor,
    state: &mut ParameterState,
    update: &Update<'_>,
) -> std::result::Result<(), TrainError> {
    with_values(gradient, |gradient| match state.master.take() {
        Some(mut master) => {
            update.apply(&mut master, gradient, state);
            let rounded = Tensor::from_slice(&master, var.shape(), var.device())?.to_dtype(var.dtype())?;
            state.master = Some(master);
            var.set(&rounded)
        }
        None if var.device().is_cpu() && var.dtype() == DType::F32 => {
            let job = Mutex::new(Job { gradient, state, update });
            var.as_tensor().inplace_op1(&InPlace(job))
        }
        None => {
            let mut param: Vec<f32> = var.flatten_all()?.to_vec1()?;
            update.apply(&mut param, gradient, state);
            var.set(&Tensor::from_vec(param, var.shape(), var.device())?)
        }
    })??;
    Ok(())
}

struct Job<'a> {
    gradient: &'a [f32],
    state: &'a mut ParameterState,
    update: &'a Update<'a>,
}

/// The update where the parameter lies: no copy in, none out.
struct InPlace<'a>(Mutex<Job<'a>>);

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((begin, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("expected a contiguous f32 parameter, got {layout:?}");
        };
        let mut job = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Job { gradient, state, update } = &mut *job;
        update.apply(&mut values[begin..end], gradient, state);
        Ok(())
    }
}
