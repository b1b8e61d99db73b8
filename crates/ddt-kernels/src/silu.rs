//! The SiLU activation.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::check::check_alike;
use crate::cpu::element::by_dtype;
use crate::cpu::silu::{backward, forward};
use crate::cpu::storage::{self, with_slices};

const NAME: &str = "silu";

/// The sigmoid linear unit.
///
/// ```text
/// y = x / (1 + exp(-x))
/// ```
///
/// Differentiable; computed in f32; the result has the dtype of `x`.
/// At minus infinity the quotient is undefined and the result is NaN.
///
/// # Shapes
///
/// `x`: any; result: the same.
///
/// # Errors
///
/// If the dtype is not f32, bf16 or f16.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    check_alike(NAME, &[("x", x)])?;
    x.contiguous()?.apply_op1(Silu)
}

struct Silu;

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(NAME, storage::dtype(x), T => {
            let x = storage::slice::<T>(x, layout)?;
            Ok((storage::from_vec(forward(x)), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        by_dtype!(NAME, x.dtype(), T => {
            let grad_x = with_slices!(T; x, grad => backward(x, grad));
            Ok(Some(Tensor::from_vec(grad_x, x.shape(), x.device())?))
        })
    }
}
