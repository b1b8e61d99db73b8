//! RMSNorm followed by shift and scale.

use candle_core::{DType, Result, Tensor};
use pulp::Simd;

use crate::anywhere::Anywhere;
use crate::cpu::element::Element;
use crate::cpu::lanes::{fold, update};
use crate::cpu::rows::sum_rows;
#[cfg(feature = "candle-cuda")]
use crate::cuda::{self, Cuda, Slice};
#[cfg(feature = "candle-cuda")]
use crate::gpu::View;
use crate::modulated_rows::{RowGradient, RowInputs, RowOp, map_sum};
use crate::modulation::{Modulation, ModulationSource, Values};
use crate::op::{FusedOp, Gradient, apply, check_shape, dims_bld};
use crate::plain;

const NAME: &str = "rms_norm_modulate";

/// RMSNorm with a weight, then shift and scale, in one pass over memory.
///
/// ```text
/// y = x / sqrt(mean(x^2) + eps) * weight * (1 + scale) + shift
/// ```
///
/// The normalisation and adaLN modulation of every block of arXiv:2504.05741; means are over the last axis.
/// Differentiable in all three tensors, unless `shift_scale` is a weighted sum.
/// Computed in f32; the result has the dtype of `x`.
///
/// # Shapes
///
/// `x`: (B, L, D), `weight`: (D), `shift_scale`: (B, 1, 2D) or (B, L, 2D), whose first D columns are the
/// shift and whose last D are the scale; result: (B, L, D).
///
/// # Errors
/// If a shape is another, if dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn rms_norm_modulate<'a>(
    x: &Tensor,
    weight: &Tensor,
    shift_scale: impl Into<ModulationSource<'a>>,
    eps: f64,
) -> Result<Tensor> {
    by_source(x, weight, shift_scale.into(), eps as f32)
}

/// Not generic, so that callers do not compile the operation again.
fn by_source(x: &Tensor, weight: &Tensor, source: ModulationSource<'_>, eps: f32) -> Result<Tensor> {
    let (b, l, d) = dims_bld(NAME, x)?;
    check_shape(NAME, "weight", weight, &[d])?;
    let modulation = Modulation::new(NAME, "shift_scale", &source, (b, l), 2 * d)?;
    if let Some(shift_scale) = source.single(&modulation)? {
        let op = RmsNormModulate { modulation: modulation.alone(), eps };
        return apply(op, x.shape(), [x, weight, &shift_scale]);
    }
    let wide = weight.to_dtype(DType::F32)?.to_vec1()?;
    map_sum(NAME, &Row { weight: &wide, eps }, &[("x", x), ("weight", weight)], [x], &source, modulation)
}

struct RmsNormModulate {
    modulation: Modulation,
    eps: f32,
}

impl Anywhere<3> for RmsNormModulate {
    fn plain(&self, [x, weight, shift_scale]: [&Tensor; 3]) -> Result<Tensor> {
        plain::modulate(&plain::rms_norm(x, weight, f64::from(self.eps))?, shift_scale)
    }

    #[cfg(feature = "candle-cuda")]
    const SPACED: Option<usize> = Some(2);

    #[cfg(feature = "candle-cuda")]
    fn fits<T: cuda::Float>(&self, dims: &[usize]) -> bool {
        dims.last().is_some_and(|width| cuda::GateNorm::<T>::takes(*width))
    }

    #[cfg(feature = "candle-cuda")]
    fn launch<T: cuda::Float>(
        &self,
        cuda: &Cuda,
        [x, weight, shift_scale]: &[View<T>; 3],
        out: &Slice<T>,
    ) -> cuda::Result<()> {
        let (norm, width) = (cuda::Norm::Rms(&weight.slice), weight.slice.len());
        cuda.norm_modulate(&x.slice, norm, self.modulation.rows_of(shift_scale), width, self.eps, out)
    }
}

impl<T: Element> FusedOp<T, 3> for RmsNormModulate {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 3] = ["x", "weight", "shift_scale"];

    fn forward(&self, [x, weight, shift_scale]: [&[T]; 3]) -> Vec<T> {
        self.inputs(x, weight, shift_scale).forward()
    }

    fn backward(&self, [x, weight, shift_scale]: [&[T]; 3], grad: &[T], _: [bool; 3]) -> [Gradient<T>; 3] {
        let mut partials = self.modulation.partials();
        let (grad_x, grad_weight) = self.inputs(x, weight, shift_scale).backward(grad, &mut partials);
        [grad_x, T::collect(grad_weight), self.modulation.gradient(partials)].map(Gradient::Of)
    }
}

impl RmsNormModulate {
    fn inputs<'a, T>(&self, x: &'a [T], weight: &'a [T], shift_scale: &'a [T]) -> Inputs<'a, T> {
        Inputs { x, weight, shift_scale: shift_scale.into(), modulation: self.modulation, eps: self.eps }
    }
}

/// The inputs of both passes: `x` (B, L, D), `weight` (D) and the columns that `modulation` names of `shift_scale`.
pub(crate) struct Inputs<'a, T, W = T> {
    pub(crate) x: &'a [T],
    pub(crate) weight: &'a [W],
    pub(crate) shift_scale: Values<'a, T>,
    pub(crate) modulation: Modulation,
    pub(crate) eps: f32,
}

impl<T: Element, W: Element> Inputs<'_, T, W> {
    pub(crate) fn forward(&self) -> Vec<T> {
        let mut scratch = W::scratch(self.weight.len());
        let op = Row { weight: W::view(self.weight, &mut scratch), eps: self.eps };
        self.rows([self.x]).map(&op)
    }

    /// [`forward`](Self::forward) over a buffer.
    pub(crate) fn forward_into(&self, out: &mut [T]) {
        let mut scratch = W::scratch(self.weight.len());
        let op = Row { weight: W::view(self.weight, &mut scratch), eps: self.eps };
        self.rows([self.x]).map_into(&op, out);
    }

    /// Gradients of `x` and `weight`, from that of the result; adds that of the modulation to `partials`, as
    /// [`RowInputs::gradients`] does.
    pub(crate) fn backward(&self, grad: &[T], partials: &mut [f32]) -> (Vec<T>, Vec<f32>) {
        self.gradients([self.x, grad], partials)
    }

    /// [`backward`](Self::backward) where `x` has a gradient already, `residual`, which is added.
    pub(crate) fn backward_onto(
        &self,
        residual: &[T],
        grad: &[T],
        partials: &mut [f32],
    ) -> (Vec<T>, Vec<f32>) {
        self.gradients([self.x, grad, residual], partials)
    }

    fn gradients<const N: usize>(&self, inputs: [&[T]; N], partials: &mut [f32]) -> (Vec<T>, Vec<f32>)
    where
        for<'w> Row<'w>: RowGradient<N>,
    {
        let width = self.weight.len();
        let mut scratch = W::scratch(width);
        let op = Row { weight: W::view(self.weight, &mut scratch), eps: self.eps };
        let (grad_x, grad_weight) = self.rows(inputs).gradients(&op, width, partials);
        (grad_x, sum_rows(&grad_weight, width))
    }

    fn rows<'a, const N: usize>(&'a self, inputs: [&'a [T]; N]) -> RowInputs<'a, T, N> {
        let (width, modulation) = (self.weight.len(), self.modulation);
        RowInputs { inputs, width, values: self.shift_scale, modulation }
    }
}

struct Row<'a> {
    weight: &'a [f32],
    eps: f32,
}

impl RowOp<1> for Row<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, [x]: [&[f32]; 1], shift_scale: &[f32], out: &mut [f32]) {
        let (shift, scale) = shift_scale.split_at(x.len());
        let one = simd.splat_f32s(1.0);
        let rstd = simd.splat_f32s(inverse_rms(simd, x, self.eps));
        update(
            simd,
            [out],
            [x, self.weight, shift, scale],
            #[inline(always)]
            |_, [x, weight, shift, scale]| {
                let normed = simd.mul_f32s(simd.mul_f32s(x, rstd), weight);
                [simd.mul_add_e_f32s(normed, simd.add_f32s(one, scale), shift)]
            },
        );
    }
}

impl RowGradient<2> for Row<'_> {
    // With h = x rstd, n = h w and g = grad (1 + scale):
    // grad_shift = grad, grad_scale = grad n, grad_w = g h, grad_x = rstd (g w - h mean(g w h)).
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        [x, grad]: [&[f32]; 2],
        shift_scale: &[f32],
        out: &mut [f32],
        grad_shift_scale: &mut [f32],
        grad_weight: &mut [f32],
    ) {
        let (weight, width) = (self.weight, x.len());
        let scale = &shift_scale[width..];
        let (grad_shift, grad_scale) = grad_shift_scale.split_at_mut(width);
        let one = simd.splat_f32s(1.0);
        let [squares, dot] = fold(
            simd,
            [x, grad, weight, scale],
            #[inline(always)]
            |[squares, dot], [x, grad, weight, scale]| {
                let gw = simd.mul_f32s(simd.mul_f32s(grad, simd.add_f32s(one, scale)), weight);
                [simd.mul_add_e_f32s(x, x, squares), simd.mul_add_e_f32s(gw, x, dot)]
            },
        );
        let inverse = 1.0 / width as f32;
        let rstd = 1.0 / (squares * inverse + self.eps).sqrt();
        let pull = simd.splat_f32s(-rstd * rstd * dot * inverse);
        let rstd = simd.splat_f32s(rstd);
        update(
            simd,
            [out, grad_weight, grad_shift, grad_scale],
            [x, grad, weight, scale],
            #[inline(always)]
            |[_, grad_weight, grad_shift, grad_scale], [x, grad, weight, scale]| {
                let g = simd.mul_f32s(grad, simd.add_f32s(one, scale));
                let h = simd.mul_f32s(x, rstd);
                let grad_h = simd.mul_add_e_f32s(x, pull, simd.mul_f32s(g, weight));
                [
                    simd.mul_f32s(rstd, grad_h),
                    simd.mul_add_e_f32s(g, h, grad_weight),
                    simd.add_f32s(grad, grad_shift),
                    simd.mul_add_e_f32s(grad, simd.mul_f32s(h, weight), grad_scale),
                ]
            },
        );
    }
}

impl RowGradient<3> for Row<'_> {
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        [x, grad, residual]: [&[f32]; 3],
        shift_scale: &[f32],
        out: &mut [f32],
        grad_shift_scale: &mut [f32],
        grad_weight: &mut [f32],
    ) {
        RowGradient::<2>::row(self, simd, [x, grad], shift_scale, out, grad_shift_scale, grad_weight);
        update(
            simd,
            [out],
            [residual],
            #[inline(always)]
            |[out], [residual]| [simd.add_f32s(out, residual)],
        );
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(crate) fn inverse_rms<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let [squares] = fold(
        simd,
        [x],
        #[inline(always)]
        |[squares], [x]| [simd.mul_add_e_f32s(x, x, squares)],
    );
    1.0 / (squares / x.len() as f32 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        EMPTY, EPS, ROWS, bits, check, plain_modulate, plain_rms_norm, random, refused, run, zeros,
    };

    #[test]
    fn rms_norm_modulate_matches() -> Result<()> {
        for (b, l, d) in ROWS {
            for rows in [1, l] {
                let inputs = [random(1, &[b, l, d])?, random(2, &[d])?, random(3, &[b, rows, 2 * d])?];
                check(
                    &inputs,
                    |x| rms_norm_modulate(&x[0], &x[1], &x[2], EPS),
                    |x| plain_modulate(&plain_rms_norm(&x[0], &x[1])?, &x[2]),
                )?;
            }
        }
        Ok(())
    }

    #[test]
    fn strided_inputs_give_the_same_values_and_gradients() -> Result<()> {
        let (b, l, d) = (2, 5, 24);
        let inputs = [random(1, &[l, b, d])?, random(2, &[2 * d])?, random(3, &[b, 2 * d, l])?];
        let op = |x: &[Tensor], copy: bool| {
            let tensors = [x[0].transpose(0, 1)?, x[1].narrow(0, 3, d)?, x[2].transpose(1, 2)?];
            let tensors = if copy {
                tensors.into_iter().map(|x| x.force_contiguous()).collect::<Result<Vec<_>>>()?
            } else {
                tensors.to_vec()
            };
            rms_norm_modulate(&tensors[0], &tensors[1], &tensors[2], EPS)
        };
        let (strided, strided_grads) = run(&inputs, |x| op(x, false))?;
        let (copied, copied_grads) = run(&inputs, |x| op(x, true))?;
        assert_eq!(bits(&strided)?, bits(&copied)?);
        for (a, b) in strided_grads.iter().zip(&copied_grads) {
            assert_eq!(bits(a)?, bits(b)?);
        }
        Ok(())
    }

    #[test]
    fn wrong_arguments_are_refused_and_empty_tensors_are_fine() -> Result<()> {
        let (x, w) = (zeros(&[2, 3, 4])?, zeros(&[4])?);
        refused(rms_norm_modulate(&w, &w, &x, 0.0), "expected x of shape (B, L, D), got [4]");
        refused(
            rms_norm_modulate(&x, &zeros(&[5])?, &zeros(&[2, 1, 8])?, 0.0),
            "expected weight of shape [4], got [5]",
        );
        refused(
            rms_norm_modulate(&x, &w, &zeros(&[2, 2, 8])?, 0.0),
            "expected shift_scale of shape (2, 1, 8) or (2, 3, 8), got [2, 2, 8]",
        );
        for (b, l, d) in EMPTY {
            let inputs = [zeros(&[b, l, d])?, zeros(&[d])?, zeros(&[b, 1, 2 * d])?];
            let (out, grads) = run(&inputs, |x| rms_norm_modulate(&x[0], &x[1], &x[2], EPS))?;
            assert_eq!(out.dims(), [b, l, d]);
            assert_eq!(grads[1].sum_all()?.to_scalar::<f32>()?, 0.0);
        }
        Ok(())
    }
}
