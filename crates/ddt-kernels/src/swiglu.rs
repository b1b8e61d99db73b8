//! The gate of a SwiGLU feed-forward layer.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::check::check_alike;
use crate::cpu::element::by_dtype;
use crate::cpu::storage::{self, with_slices};
use crate::cpu::swiglu::{backward, forward};

const NAME: &str = "swiglu";

/// The gate of a SwiGLU feed-forward layer.
///
/// ```text
/// out = a / (1 + exp(-a)) * b
/// ```
///
/// Differentiable in both tensors; computed in f32; the result has the dtype of `a`.
///
/// # Shapes
///
/// `a`, `b`: any, but equal; result: the same.
///
/// # Errors
///
/// If shapes, dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn swiglu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check_alike(NAME, &[("a", a), ("b", b)])?;
    if a.dims() != b.dims() {
        bail!("{NAME}: expected b of shape {:?}, that of a, got {:?}", a.shape(), b.shape());
    }
    a.contiguous()?.apply_op2(&b.contiguous()?, SwiGlu)
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(NAME, storage::dtype(a), T => {
            let a = storage::slice::<T>(a, a_layout)?;
            let b = storage::slice(b, b_layout)?;
            Ok((storage::from_vec(forward(a, b)), a_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        by_dtype!(NAME, a.dtype(), T => {
            let (grad_a, grad_b) = with_slices!(T; a, b, grad => backward(a, b, grad));
            Ok((
                Some(Tensor::from_vec(grad_a, a.shape(), a.device())?),
                Some(Tensor::from_vec(grad_b, b.shape(), a.device())?),
            ))
        })
    }
}
