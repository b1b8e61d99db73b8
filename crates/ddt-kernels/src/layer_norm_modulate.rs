//! LayerNorm followed by shift and scale.

use candle_core::{Result, Tensor};
use pulp::Simd;

use crate::anywhere::Anywhere;
use crate::cpu::element::Element;
use crate::cpu::lanes::{fold, update};
#[cfg(feature = "candle-cuda")]
use crate::cuda::{self, Cuda, Slice};
#[cfg(feature = "candle-cuda")]
use crate::gpu::View;
use crate::modulated_rows::{RowGradient, RowInputs, RowOp, map_sum};
use crate::modulation::{Modulation, ModulationSource};
use crate::op::{FusedOp, Gradient, apply, dims_bld};
use crate::plain;

const NAME: &str = "layer_norm_modulate";

/// LayerNorm without weight and bias, then shift and scale, in one pass over memory.
///
/// ```text
/// y = (x - mean(x)) / sqrt(var(x) + eps) * (1 + scale) + shift
/// ```
///
/// The final layer of arXiv:2504.05741; mean and (biased) variance are over the last axis.
/// Differentiable in both tensors, unless `shift_scale` is a weighted sum.
/// Computed in f32; the result has the dtype of `x`.
///
/// # Shapes
///
/// `x`: (B, L, D), `shift_scale`: (B, 1, 2D) or (B, L, 2D), whose first D columns are the shift and whose
/// last D are the scale; result: (B, L, D).
///
/// # Errors
/// If a shape is another, if dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn layer_norm_modulate<'a>(
    x: &Tensor,
    shift_scale: impl Into<ModulationSource<'a>>,
    eps: f64,
) -> Result<Tensor> {
    by_source(x, shift_scale.into(), eps as f32)
}

/// Not generic, so that callers do not compile the operation again.
fn by_source(x: &Tensor, source: ModulationSource<'_>, eps: f32) -> Result<Tensor> {
    let (b, l, d) = dims_bld(NAME, x)?;
    let modulation = Modulation::new(NAME, "shift_scale", &source, (b, l), 2 * d)?;
    match source.single(&modulation)? {
        Some(shift_scale) => {
            let op = LayerNormModulate { width: d, modulation: modulation.alone(), eps };
            apply(op, x.shape(), [x, &shift_scale])
        }
        None => {
            let op = LayerNormModulate { width: d, modulation, eps };
            map_sum(NAME, &op, &[("x", x)], [x], &source, modulation)
        }
    }
}

struct LayerNormModulate {
    width: usize,
    modulation: Modulation,
    eps: f32,
}

impl LayerNormModulate {
    fn rows<'a, T, const N: usize>(&self, inputs: [&'a [T]; N], values: &'a [T]) -> RowInputs<'a, T, N> {
        RowInputs { inputs, width: self.width, values: values.into(), modulation: self.modulation }
    }
}

impl Anywhere<2> for LayerNormModulate {
    fn plain(&self, [x, shift_scale]: [&Tensor; 2]) -> Result<Tensor> {
        plain::modulate(&plain::layer_norm(x, f64::from(self.eps))?, shift_scale)
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
        [x, shift_scale]: &[View<T>; 2],
        out: &Slice<T>,
    ) -> cuda::Result<()> {
        cuda.norm_modulate(
            &x.slice,
            cuda::Norm::Layer,
            self.modulation.rows_of(shift_scale),
            self.width,
            self.eps,
            out,
        )
    }
}

impl<T: Element> FusedOp<T, 2> for LayerNormModulate {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 2] = ["x", "shift_scale"];

    fn forward(&self, [x, shift_scale]: [&[T]; 2]) -> Vec<T> {
        self.rows([x], shift_scale).map(self)
    }

    fn backward(&self, [x, shift_scale]: [&[T]; 2], grad: &[T], _: [bool; 2]) -> [Gradient<T>; 2] {
        let mut partials = self.modulation.partials();
        let (grad_x, _) = self.rows([x, grad], shift_scale).gradients(self, 0, &mut partials);
        [Gradient::Of(grad_x), Gradient::Of(self.modulation.gradient(partials))]
    }
}

impl RowOp<1> for LayerNormModulate {
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, [x]: [&[f32]; 1], shift_scale: &[f32], out: &mut [f32]) {
        let (shift, scale) = shift_scale.split_at(x.len());
        let one = simd.splat_f32s(1.0);
        let (mean, rstd) = moments(simd, x, self.eps);
        let (mean, rstd) = (simd.splat_f32s(mean), simd.splat_f32s(rstd));
        update(
            simd,
            [out],
            [x, shift, scale],
            #[inline(always)]
            |_, [x, shift, scale]| {
                let normed = simd.mul_f32s(simd.sub_f32s(x, mean), rstd);
                [simd.mul_add_e_f32s(normed, simd.add_f32s(one, scale), shift)]
            },
        );
    }
}

impl RowGradient<2> for LayerNormModulate {
    // With h = (x - mean) rstd and g = grad (1 + scale):
    // grad_shift = grad, grad_scale = grad h, grad_x = rstd (g - mean(g) - h mean(g h)).
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        [x, grad]: [&[f32]; 2],
        shift_scale: &[f32],
        out: &mut [f32],
        grad_shift_scale: &mut [f32],
        _grad_weight: &mut [f32],
    ) {
        let width = x.len();
        let scale = &shift_scale[width..];
        let (grad_shift, grad_scale) = grad_shift_scale.split_at_mut(width);
        let one = simd.splat_f32s(1.0);
        let (mean, rstd) = moments(simd, x, self.eps);
        let (mean, rstd) = (simd.splat_f32s(mean), simd.splat_f32s(rstd));
        let [sum, dot] = fold(
            simd,
            [x, grad, scale],
            #[inline(always)]
            |[sum, dot], [x, grad, scale]| {
                let g = simd.mul_f32s(grad, simd.add_f32s(one, scale));
                let h = simd.mul_f32s(simd.sub_f32s(x, mean), rstd);
                [simd.add_f32s(sum, g), simd.mul_add_e_f32s(g, h, dot)]
            },
        );
        let mean_g = simd.splat_f32s(sum / width as f32);
        let pull = simd.splat_f32s(-dot / width as f32);
        update(
            simd,
            [out, grad_shift, grad_scale],
            [x, grad, scale],
            #[inline(always)]
            |[_, grad_shift, grad_scale], [x, grad, scale]| {
                let g = simd.mul_f32s(grad, simd.add_f32s(one, scale));
                let h = simd.mul_f32s(simd.sub_f32s(x, mean), rstd);
                let grad_h = simd.mul_add_e_f32s(h, pull, simd.sub_f32s(g, mean_g));
                [
                    simd.mul_f32s(rstd, grad_h),
                    simd.add_f32s(grad, grad_shift),
                    simd.mul_add_e_f32s(grad, h, grad_scale),
                ]
            },
        );
    }
}

/// The mean, and `1 / sqrt(variance + eps)` from a second pass: a one-pass variance cancels.
#[inline(always)]
pub(crate) fn moments<S: Simd>(simd: S, x: &[f32], eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let [sum] = fold(
        simd,
        [x],
        #[inline(always)]
        |[sum], [x]| [simd.add_f32s(sum, x)],
    );
    let mean = sum / count;
    let squares = squared_distance(simd, x, mean);
    (mean, 1.0 / (squares / count + eps).sqrt())
}

/// `sum((x - mean)^2)`.
#[inline(always)]
fn squared_distance<S: Simd>(simd: S, x: &[f32], mean: f32) -> f32 {
    let centre = simd.splat_f32s(mean);
    let whole = x.len() - x.len() % S::F32_LANES;
    let [squares] = fold(
        simd,
        [&x[..whole]],
        #[inline(always)]
        |[squares], [x]| {
            let distance = simd.sub_f32s(x, centre);
            [simd.mul_add_e_f32s(distance, distance, squares)]
        },
    );
    // The zeros that pad a partial lane group are not at the mean, so the last few are added singly.
    x[whole..].iter().fold(squares, |squares, x| squares + (x - mean) * (x - mean))
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::testing::{
        EMPTY, EPS, ROWS, check, error, plain_layer_norm, plain_modulate, random, refused, run, zeros,
    };

    #[test]
    fn layer_norm_modulate_matches() -> Result<()> {
        for (b, l, d) in ROWS {
            for rows in [1, l] {
                let inputs = [random(1, &[b, l, d])?, random(3, &[b, rows, 2 * d])?];
                check(
                    &inputs,
                    |x| layer_norm_modulate(&x[0], &x[1], EPS),
                    |x| plain_modulate(&plain_layer_norm(&x[0])?, &x[1]),
                )?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_large_mean_does_not_cancel_the_variance() -> Result<()> {
        let x = (random(1, &[2, 3, 100])? + 1000.0)?;
        let zero = Tensor::zeros((2, 1, 200), x.dtype(), x.device())?;
        let got = layer_norm_modulate(&x, &zero, EPS)?;
        let want = plain_layer_norm(&x.to_dtype(DType::F64)?)?;
        // The mean of numbers near 1000 is known to 6e-5 in f32, against a deviation of about 1.
        assert!(error(&got, &want)? < 1e-4);
        Ok(())
    }

    #[test]
    fn wrong_arguments_are_refused_and_empty_tensors_are_fine() -> Result<()> {
        refused(layer_norm_modulate(&zeros(&[2, 3, 4])?, &zeros(&[2, 1, 4])?, 0.0), "got [2, 1, 4]");
        for (b, l, d) in EMPTY {
            run(&[zeros(&[b, l, d])?, zeros(&[b, 1, 2 * d])?], |x| layer_norm_modulate(&x[0], &x[1], EPS))?;
        }
        Ok(())
    }
}
