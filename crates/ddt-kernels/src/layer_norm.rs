//! Layer normalisation with weight and bias.

use candle_core::{Result, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::dispatch;
use crate::cpu::element::Element;
use crate::cpu::lanes::update;
use crate::layer_norm_modulate::moments;
use crate::op::{FrozenOp, apply_frozen, check_shape};

const NAME: &str = "layer_norm";

/// Elements of one task, about.
const TASK: usize = 16 * 1024;

/// Layer normalisation over the last axis.
///
/// ```text
/// y = (x - mean) / sqrt(var + eps) * weight + bias
/// ```
///
/// Arithmetic is f32, the result in the dtype of `x`. Not differentiable.
///
/// # Shapes
///
/// `x`: (.., D), `weight`, `bias`: (D); result: (.., D).
///
/// # Errors
///
/// If a shape is another, if dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(0);
    if width == 0 {
        bail!("{NAME}: expected x of shape (.., D), got {:?}", x.shape());
    }
    check_shape(NAME, "weight", weight, &[width])?;
    check_shape(NAME, "bias", bias, &[width])?;
    apply_frozen(&LayerNorm { eps: eps as f32 }, x.shape(), [x, weight, bias])
}

struct LayerNorm {
    eps: f32,
}

impl FrozenOp<3> for LayerNorm {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 3] = ["x", "weight", "bias"];

    fn forward<T: Element>(&self, [x, weight, bias]: [&[T]; 3]) -> Vec<T> {
        let [weight, bias] = [weight, bias].map(|it| {
            let mut wide = vec![0.0; it.len()];
            T::widen(it, &mut wide);
            wide
        });
        let mut out = vec![T::zero(); x.len()];
        let task = weight.len() * (TASK / weight.len()).max(1);
        out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out, x)| {
            dispatch(Rows { x, weight: &weight, bias: &bias, eps: self.eps, out });
        });
        out
    }
}

struct Rows<'a, T> {
    x: &'a [T],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    out: &'a mut [T],
}

impl<T: Element> WithSimd for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, weight, bias, eps, out } = self;
        let width = weight.len();
        let (mut x_row, mut out_row) = (T::scratch(width), T::scratch(width));
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let x = T::view(x, &mut x_row);
            let (mean, rstd) = moments(simd, x, eps);
            let (mean, rstd) = (simd.splat_f32s(mean), simd.splat_f32s(rstd));
            update(
                simd,
                [T::view_mut(out, &mut out_row)],
                [x, weight, bias],
                #[inline(always)]
                |_, [x, weight, bias]| {
                    let normed = simd.mul_f32s(simd.sub_f32s(x, mean), rstd);
                    [simd.mul_add_e_f32s(normed, weight, bias)]
                },
            );
            T::commit(out, &out_row);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Shape};

    use super::*;

    fn filled(shape: impl Into<Shape>, offset: f32) -> Tensor {
        let shape = shape.into();
        let values: Vec<f32> = (0..shape.elem_count()).map(|i| (i as f32 * 0.7).sin() + offset).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn agrees_with_plain_operations() {
        for width in [1, 5, 16, 48, 99] {
            for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 2e-2)] {
                let [x, weight, bias] = [filled((2, 7, width), 3.0), filled(width, 0.3), filled(width, 0.0)]
                    .map(|it| it.to_dtype(dtype).unwrap());
                let got = layer_norm(&x, &weight, &bias, 1e-6).unwrap();
                let [x, weight, bias] = [&x, &weight, &bias].map(|it| it.to_dtype(DType::F64).unwrap());
                let centred = x.broadcast_sub(&x.mean_keepdim(2).unwrap()).unwrap();
                let std = (centred.sqr().unwrap().mean_keepdim(2).unwrap() + 1e-6).unwrap().sqrt().unwrap();
                let want = centred.broadcast_div(&std).unwrap().broadcast_mul(&weight).unwrap();
                let want = want.broadcast_add(&bias).unwrap();
                let apart = (got.to_dtype(DType::F64).unwrap() - want).unwrap().abs().unwrap();
                let apart = apart.max_all().unwrap().to_scalar::<f64>().unwrap();
                assert!(apart < tolerance, "{width} {dtype:?}: {apart}");
            }
            assert!(
                layer_norm(&filled((2, width + 1), 0.0), &filled(width, 0.0), &filled(width, 0.0), 1e-6)
                    .is_err()
            );
        }
    }
}
