//! Layer normalisation with weight and bias.

use candle_core::{DType, Result, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::buffers::{Fill, Fresh, Part};
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
/// Arithmetic is f32; the result has `dtype`: that of `x`, or bf16 where `x` is f32. Not differentiable.
///
/// # Shapes
///
/// `x`: (.., D), `weight`, `bias`: (D); result: (.., D).
///
/// # Errors
/// If a shape is another, if `x` is not on the CPU, or if its dtype is not f32, bf16 or f16 or the result's another.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, dtype: DType) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(0);
    if width == 0 {
        bail!("{NAME}: expected x of shape (.., D), got {:?}", x.shape());
    }
    check_shape(NAME, "weight", weight, &[width])?;
    check_shape(NAME, "bias", bias, &[width])?;
    let wide = |it: &Tensor| it.to_dtype(DType::F32)?.to_vec1();
    let op = LayerNorm { weight: wide(weight)?, bias: wide(bias)?, eps: eps as f32 };
    apply_frozen(&op, dtype, x.shape(), x)
}

struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl FrozenOp for LayerNorm {
    const NAME: &'static str = NAME;

    fn forward<T: Element, O: Element>(&self, x: &[T]) -> Vec<O> {
        let width = self.weight.len();
        let task = width * (TASK / width).max(1);
        let tasks: Vec<&[T]> = x.chunks(task).collect();
        let mut out = Fresh::new(x.len());
        let outs: Vec<Part<'_, O>> = out.parts(tasks.iter().map(|it| it.len())).collect();
        tasks.into_par_iter().zip(outs).for_each(|(x, out)| {
            dispatch(Rows { x, norm: self, out: out.open() });
        });
        out.finish()
    }
}

struct Rows<'a, T, O> {
    x: &'a [T],
    norm: &'a LayerNorm,
    out: &'a mut [O],
}

impl<T: Element, O: Element> WithSimd for Rows<'_, T, O> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, norm: LayerNorm { weight, bias, eps }, out } = self;
        let width = weight.len();
        let (mut x_row, mut out_row) = (T::scratch(width), O::scratch(width));
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let x = T::view(x, &mut x_row);
            let (mean, rstd) = moments(simd, x, *eps);
            let (mean, rstd) = (simd.splat_f32s(mean), simd.splat_f32s(rstd));
            update(
                simd,
                [O::view_mut(out, &mut out_row)],
                [x, weight, bias],
                #[inline(always)]
                |_, [x, weight, bias]| {
                    let normed = simd.mul_f32s(simd.sub_f32s(x, mean), rstd);
                    [simd.mul_add_e_f32s(normed, weight, bias)]
                },
            );
            O::commit(out, &out_row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::filled;

    #[test]
    fn agrees_with_plain_operations() {
        for width in [1, 5, 16, 48, 99] {
            for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 2e-2)] {
                let [x, weight, bias] = [filled((2, 7, width), 3.0), filled(width, 0.3), filled(width, 0.0)]
                    .map(|it| it.to_dtype(dtype).unwrap());
                let got = layer_norm(&x, &weight, &bias, 1e-6, dtype).unwrap();
                let [x, weight, bias] = [&x, &weight, &bias].map(|it| it.to_dtype(DType::F64).unwrap());
                let centred = x.broadcast_sub(&x.mean_keepdim(2).unwrap()).unwrap();
                let std = (centred.sqr().unwrap().mean_keepdim(2).unwrap() + 1e-6).unwrap().sqrt().unwrap();
                let want = centred.broadcast_div(&std).unwrap().broadcast_mul(&weight).unwrap();
                let want = want.broadcast_add(&bias).unwrap();
                let apart = (got.to_dtype(DType::F64).unwrap() - want).unwrap().abs().unwrap();
                let apart = apart.max_all().unwrap().to_scalar::<f64>().unwrap();
                assert!(apart < tolerance, "{width} {dtype:?}: {apart}");
            }
            let other = filled((2, width + 1), 0.0);
            assert!(layer_norm(&other, &filled(width, 0.0), &filled(width, 0.0), 1e-6, DType::F32).is_err());
        }
    }
}
