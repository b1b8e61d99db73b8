//! SiLU of a sum.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use crate::check::{check_alike, dims_bld, modulation_of};
use crate::cpu::Rows;
use crate::cpu::add_silu::{Inputs, backward, forward};
use crate::cpu::element::by_dtype;
use crate::cpu::storage::{self, with_slices};
use crate::modulation::Modulation;

const NAME: &str = "add_silu";

/// SiLU of a sum, such as the self-condition `z_t = silu(t_emb + encoder output)` of arXiv:2504.05741.
///
/// ```text
/// s = x + t;  out = s / (1 + exp(-s))
/// ```
///
/// Differentiable in both tensors; computed in f32; the result has the dtype of `x`.
///
/// # Shapes
///
/// `x`: (B, L, D), `t`: (B, 1, D) or (B, L, D); result: (B, L, D).
///
/// # Errors
///
/// If a shape is another, if dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn add_silu(x: &Tensor, t: &Tensor) -> Result<Tensor> {
    let (b, l, d) = dims_bld(NAME, x)?;
    check_alike(NAME, &[("x", x), ("t", t)])?;
    let modulation = modulation_of(NAME, ("t", t), (b, l), d)?;
    x.contiguous()?.apply_op2(&t.contiguous()?, AddSilu { width: d, modulation, rows: Rows::new(b, l) })
}

struct AddSilu {
    width: usize,
    modulation: Modulation,
    rows: Rows,
}

impl AddSilu {
    fn inputs<'a, T>(&self, x: &'a [T], t: &'a [T]) -> Inputs<'a, T> {
        let Self { width, modulation, ref rows } = *self;
        Inputs { x, t, width, modulation, rows: rows.clone() }
    }
}

impl CustomOp2 for AddSilu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        t: &CpuStorage,
        t_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(NAME, storage::dtype(x), T => {
            let x = storage::slice::<T>(x, x_layout)?;
            let t = storage::slice(t, t_layout)?;
            Ok((storage::from_vec(forward(&self.inputs(x, t))), x_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        t: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        by_dtype!(NAME, x.dtype(), T => {
            let (grad_x, grad_t) = with_slices!(T; x, t, grad => backward(&self.inputs(x, t), grad));
            Ok((
                Some(Tensor::from_vec(grad_x, x.shape(), x.device())?),
                Some(Tensor::from_vec(grad_t, t.shape(), x.device())?),
            ))
        })
    }
}
