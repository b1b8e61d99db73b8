//! A gated branch added to the residual stream.

use candle_core::{Result, Tensor};
use pulp::Simd;

use crate::anywhere::Anywhere;
use crate::cpu::element::Element;
use crate::cpu::lanes::update;
#[cfg(feature = "candle-cuda")]
use crate::cuda::{self, Cuda, Slice};
#[cfg(feature = "candle-cuda")]
use crate::gpu::View;
use crate::modulated_rows::{RowGradient, RowInputs, RowOp, map_sum};
use crate::modulation::{Modulation, ModulationSource};
use crate::op::{FusedOp, Gradient, apply, check_shape, dims_bld};

const NAME: &str = "gate_residual";

/// Adds a gated branch to the residual stream.
///
/// ```text
/// out = x + gate * y
/// ```
///
/// The end of attention and of the MLP in every block of arXiv:2504.05741.
/// Differentiable in all three tensors, unless `gate` is a weighted sum.
/// Computed in f32; the result has the dtype of `x`.
///
/// # Shapes
///
/// `x`, `y`: (B, L, D), `gate`: (B, 1, D) or (B, L, D); result: (B, L, D).
///
/// # Errors
/// If a shape is another, if dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn gate_residual<'a>(x: &Tensor, gate: impl Into<ModulationSource<'a>>, y: &Tensor) -> Result<Tensor> {
    by_source(x, gate.into(), y)
}

/// Not generic, so that callers do not compile the operation again.
fn by_source(x: &Tensor, source: ModulationSource<'_>, y: &Tensor) -> Result<Tensor> {
    let (b, l, d) = dims_bld(NAME, x)?;
    check_shape(NAME, "y", y, x.dims())?;
    let modulation = Modulation::new(NAME, "gate", &source, (b, l), d)?;
    match source.single(&modulation)? {
        Some(gate) => {
            let op = GateResidual { width: d, modulation: modulation.alone() };
            apply(op, x.shape(), [x, &gate, y])
        }
        None => map_sum(NAME, &Row, &[("x", x), ("y", y)], [x, y], &source, modulation),
    }
}

struct GateResidual {
    width: usize,
    modulation: Modulation,
}

impl Anywhere<3> for GateResidual {
    fn plain(&self, [x, gate, y]: [&Tensor; 3]) -> Result<Tensor> {
        x + y.broadcast_mul(gate)?
    }

    #[cfg(feature = "candle-cuda")]
    const SPACED: Option<usize> = Some(1);

    #[cfg(feature = "candle-cuda")]
    fn fits<T: cuda::Float>(&self, dims: &[usize]) -> bool {
        dims.last().is_some_and(|width| cuda::GateNorm::<T>::takes(*width))
    }

    #[cfg(feature = "candle-cuda")]
    fn launch<T: cuda::Float>(
        &self,
        cuda: &Cuda,
        [x, gate, y]: &[View<T>; 3],
        out: &Slice<T>,
    ) -> cuda::Result<()> {
        let gate = self.modulation.rows_of(gate);
        let branch = Some(cuda::Branch { y: &y.slice, bias: None, gate, sum: out });
        let (x, width) = (&x.slice, self.width);
        cuda.gate_norm(&cuda::GateNorm { x, width, branch, modulate: None, forecast: None })
    }
}

impl<T: Element> FusedOp<T, 3> for GateResidual {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 3] = ["x", "gate", "y"];

    fn forward(&self, [x, gate, y]: [&[T]; 3]) -> Vec<T> {
        forward(self.modulation, self.width, [x, y], gate)
    }

    fn backward(&self, [_, gate, y]: [&[T]; 3], grad: &[T], _: [bool; 3]) -> [Gradient<T>; 3] {
        let mut partials = self.modulation.partials();
        let grad_y = backward(self.modulation, self.width, [y, grad], gate, &mut partials);
        [Gradient::Same, Gradient::Of(self.modulation.gradient(partials)), Gradient::Of(grad_y)]
    }
}

/// `x + gate * y`, where `modulation` names the columns of `gate`.
pub(crate) fn forward<T: Element>(
    modulation: Modulation,
    width: usize,
    [x, y]: [&[T]; 2],
    gate: &[T],
) -> Vec<T> {
    RowInputs { inputs: [x, y], width, values: gate.into(), modulation }.map(&Row)
}

/// The gradient of `y`; adds that of the gate to `partials`, as [`RowInputs::gradients`] does.
pub(crate) fn backward<T: Element>(
    modulation: Modulation,
    width: usize,
    [y, grad]: [&[T]; 2],
    gate: &[T],
    partials: &mut [f32],
) -> Vec<T> {
    RowInputs { inputs: [y, grad], width, values: gate.into(), modulation }.gradients(&Row, 0, partials).0
}

struct Row;

impl RowOp<2> for Row {
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, [x, y]: [&[f32]; 2], gate: &[f32], out: &mut [f32]) {
        update(
            simd,
            [out],
            [x, gate, y],
            #[inline(always)]
            |_, [x, gate, y]| [simd.mul_add_e_f32s(gate, y, x)],
        );
    }
}

impl RowGradient<2> for Row {
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        [y, grad]: [&[f32]; 2],
        gate: &[f32],
        out: &mut [f32],
        grad_gate: &mut [f32],
        _grad_weight: &mut [f32],
    ) {
        update(
            simd,
            [out, grad_gate],
            [gate, y, grad],
            #[inline(always)]
            |[_, sum], [gate, y, grad]| [simd.mul_f32s(grad, gate), simd.mul_add_e_f32s(grad, y, sum)],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{EMPTY, ROWS, check, random, refused, run, zeros};

    #[test]
    fn gate_residual_matches() -> Result<()> {
        for (b, l, d) in ROWS {
            for rows in [1, l] {
                let inputs = [random(1, &[b, l, d])?, random(2, &[b, rows, d])?, random(3, &[b, l, d])?];
                check(
                    &inputs,
                    |x| gate_residual(&x[0], &x[1], &x[2]),
                    |x| &x[0] + x[1].broadcast_mul(&x[2])?,
                )?;
            }
        }
        Ok(())
    }

    #[test]
    fn wrong_arguments_are_refused_and_empty_tensors_are_fine() -> Result<()> {
        let x = zeros(&[2, 3, 4])?;
        refused(gate_residual(&x, &zeros(&[1, 1, 4])?, &x), "expected gate of shape (2, 1, 4) or (2, 3, 4)");
        refused(gate_residual(&x, &zeros(&[2, 1, 4])?, &zeros(&[2, 3, 5])?), "expected y of shape [2, 3, 4]");
        for (b, l, d) in EMPTY {
            let inputs = [zeros(&[b, l, d])?, zeros(&[b, 1, d])?, zeros(&[b, l, d])?];
            run(&inputs, |x| gate_residual(&x[0], &x[1], &x[2]))?;
        }
        Ok(())
    }
}
