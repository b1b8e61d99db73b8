//! RMSNorm followed by shift and scale.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::check::{check_alike, dims_bld, modulation_of};
use crate::cpu::Rows;
use crate::cpu::element::by_dtype;
use crate::cpu::rms_norm_modulate::{Inputs, backward, forward};
use crate::cpu::storage::{self, with_slices};
use crate::modulation::{Columns, Modulation};

const NAME: &str = "rms_norm_modulate";

/// RMSNorm with a weight, then shift and scale, in one pass over memory.
///
/// ```text
/// y = x / sqrt(mean(x^2) + eps) * weight * (1 + scale) + shift
/// ```
///
/// The normalisation and adaLN modulation of every block of arXiv:2504.05741; means are over the last axis.
/// Differentiable in all three tensors.
/// Computed in f32; the result has the dtype of `x`.
///
/// # Shapes
///
/// `x`: (B, L, D), `weight`: (D), `shift_scale`: (B, 1, 2D) or (B, L, 2D), whose first D columns are the
/// shift and whose last D are the scale; result: (B, L, D).
///
/// # Errors
///
/// If a shape is another, if dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn rms_norm_modulate(x: &Tensor, weight: &Tensor, shift_scale: &Tensor, eps: f64) -> Result<Tensor> {
    let (b, l, d) = dims_bld(NAME, x)?;
    check_alike(NAME, &[("x", x), ("weight", weight), ("shift_scale", shift_scale)])?;
    if weight.dims() != [d] {
        bail!("{NAME}: expected weight of shape ({d}), got {:?}", weight.shape());
    }
    let modulation = modulation_of(NAME, ("shift_scale", shift_scale), (b, l), 2 * d)?;
    let op = RmsNormModulate { modulation, rows: Rows::new(b, l), eps: eps as f32 };
    x.contiguous()?.apply_op3(&weight.contiguous()?, &shift_scale.contiguous()?, op)
}

struct RmsNormModulate {
    modulation: Modulation,
    rows: Rows,
    eps: f32,
}

impl RmsNormModulate {
    fn inputs<'a, T>(&self, x: &'a [T], weight: &'a [T], shift_scale: &'a [T]) -> Inputs<'a, T> {
        let Self { modulation, ref rows, eps } = *self;
        let columns = Columns::all(2 * weight.len());
        Inputs { x, weight, shift_scale, columns, modulation, rows: rows.clone(), eps }
    }
}

impl CustomOp3 for RmsNormModulate {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        shift_scale: &CpuStorage,
        shift_scale_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(NAME, storage::dtype(x), T => {
            let x = storage::slice::<T>(x, x_layout)?;
            let weight = storage::slice(weight, weight_layout)?;
            let shift_scale = storage::slice(shift_scale, shift_scale_layout)?;
            let out = forward(&self.inputs(x, weight, shift_scale));
            Ok((storage::from_vec(out), x_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        shift_scale: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        by_dtype!(NAME, x.dtype(), T => {
            let grads = with_slices!(T; x, weight, shift_scale, grad => {
                backward(&self.inputs(x, weight, shift_scale), grad)
            });
            Ok((
                Some(Tensor::from_vec(grads.x, x.shape(), x.device())?),
                Some(Tensor::from_vec(grads.weight, weight.shape(), x.device())?),
                Some(Tensor::from_vec(grads.shift_scale, shift_scale.shape(), x.device())?),
            ))
        })
    }
}
