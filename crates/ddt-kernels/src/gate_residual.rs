//! A gated branch added to the residual stream.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::check::{check_alike, dims_bld, modulation_of};
use crate::cpu::Rows;
use crate::cpu::element::by_dtype;
use crate::cpu::gate_residual::{Plan, backward, forward};
use crate::cpu::storage::{self, with_slices};
use crate::modulation::Columns;

const NAME: &str = "gate_residual";

/// Adds a gated branch to the residual stream.
///
/// ```text
/// out = x + gate * y
/// ```
///
/// The end of both halves of every block of arXiv:2504.05741.
/// Differentiable in all three tensors.
/// Computed in f32; the result has the dtype of `x`.
///
/// # Shapes
///
/// `x`, `y`: (B, L, D), `gate`: (B, 1, D) or (B, L, D); result: (B, L, D).
///
/// # Errors
///
/// If a shape is another, if dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn gate_residual(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (b, l, d) = dims_bld(NAME, x)?;
    check_alike(NAME, &[("x", x), ("gate", gate), ("y", y)])?;
    if y.dims() != x.dims() {
        bail!("{NAME}: expected y of shape {:?}, that of x, got {:?}", x.shape(), y.shape());
    }
    let modulation = modulation_of(NAME, ("gate", gate), (b, l), d)?;
    let columns = Columns::all(d);
    let op = GateResidual(Plan { width: d, columns, modulation, rows: Rows::new(b, l) });
    x.contiguous()?.apply_op3(&gate.contiguous()?, &y.contiguous()?, op)
}

struct GateResidual(Plan);

impl CustomOp3 for GateResidual {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gate: &CpuStorage,
        gate_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(NAME, storage::dtype(x), T => {
            let x = storage::slice::<T>(x, x_layout)?;
            let gate = storage::slice(gate, gate_layout)?;
            let y = storage::slice(y, y_layout)?;
            Ok((storage::from_vec(forward(&self.0, x, gate, y)), x_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        gate: &Tensor,
        y: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        by_dtype!(NAME, x.dtype(), T => {
            let (grad_gate, grad_y) = with_slices!(T; gate, y, grad => backward(&self.0, gate, y, grad));
            let grad_gate = Tensor::from_vec(grad_gate, gate.shape(), x.device())?;
            let grad_y = Tensor::from_vec(grad_y, y.shape(), x.device())?;
            Ok((Some(grad), Some(grad_gate), Some(grad_y)))
        })
    }
}
