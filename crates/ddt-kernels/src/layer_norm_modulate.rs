//! LayerNorm followed by shift and scale.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use crate::check::{check_alike, dims_bld, modulation_of};
use crate::cpu::Rows;
use crate::cpu::element::by_dtype;
use crate::cpu::layer_norm_modulate::{Inputs, backward, forward};
use crate::cpu::storage::{self, with_slices};
use crate::modulation::Modulation;

const NAME: &str = "layer_norm_modulate";

/// LayerNorm without weight and bias, then shift and scale, in one pass over memory.
///
/// ```text
/// y = (x - mean(x)) / sqrt(var(x) + eps) * (1 + scale) + shift
/// ```
///
/// The final layer of arXiv:2504.05741; mean and (biased) variance are over the last axis.
/// Differentiable in both tensors.
/// Computed in f32; the result has the dtype of `x`.
///
/// # Shapes
///
/// `x`: (B, L, D), `shift_scale`: (B, 1, 2D) or (B, L, 2D), whose first D columns are the shift and whose
/// last D are the scale; result: (B, L, D).
///
/// # Errors
///
/// If a shape is another, if dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn layer_norm_modulate(x: &Tensor, shift_scale: &Tensor, eps: f64) -> Result<Tensor> {
    let (b, l, d) = dims_bld(NAME, x)?;
    check_alike(NAME, &[("x", x), ("shift_scale", shift_scale)])?;
    let modulation = modulation_of(NAME, ("shift_scale", shift_scale), (b, l), 2 * d)?;
    let op = LayerNormModulate { modulation, rows: Rows::new(b, l), width: d, eps: eps as f32 };
    x.contiguous()?.apply_op2(&shift_scale.contiguous()?, op)
}

struct LayerNormModulate {
    modulation: Modulation,
    rows: Rows,
    width: usize,
    eps: f32,
}

impl LayerNormModulate {
    fn inputs<'a, T>(&self, x: &'a [T], shift_scale: &'a [T]) -> Inputs<'a, T> {
        let Self { modulation, ref rows, width, eps } = *self;
        Inputs { x, shift_scale, width, modulation, rows: rows.clone(), eps }
    }
}

impl CustomOp2 for LayerNormModulate {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        shift_scale: &CpuStorage,
        shift_scale_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(NAME, storage::dtype(x), T => {
            let x = storage::slice::<T>(x, x_layout)?;
            let shift_scale = storage::slice(shift_scale, shift_scale_layout)?;
            Ok((storage::from_vec(forward(&self.inputs(x, shift_scale))), x_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        shift_scale: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        by_dtype!(NAME, x.dtype(), T => {
            let (grad_x, grad_shift_scale) = with_slices!(T; x, shift_scale, grad => {
                backward(&self.inputs(x, shift_scale), grad)
            });
            Ok((
                Some(Tensor::from_vec(grad_x, x.shape(), x.device())?),
                Some(Tensor::from_vec(grad_shift_scale, shift_scale.shape(), x.device())?),
            ))
        })
    }
}
