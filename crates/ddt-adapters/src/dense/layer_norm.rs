//! Layer normalisation with weight and bias.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{is_ours, slice};

/// `(x - mean) / sqrt(var + eps) * weight + bias` over the last axis, statistics in f32.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// From `weight: (D)` and `bias: (D)`.
    pub(crate) fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias, eps }
    }

    /// `(.., D) -> (.., D)`
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if is_ours(xs) && is_ours(&self.weight) {
            return xs.contiguous()?.apply_op3(&self.weight, &self.bias, Fused { eps: self.eps as f32 });
        }
        self.forward_candle(xs)
    }

    fn forward_candle(&self, xs: &Tensor) -> Result<Tensor> {
        let axis = candle_core::D::Minus1;
        let wide = xs.to_dtype(DType::F32)?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim(axis)?)?;
        let std = (centred.sqr()?.mean_keepdim(axis)? + self.eps)?.sqrt()?;
        let ys = centred.broadcast_div(&std)?.to_dtype(xs.dtype())?;
        ys.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

struct Fused {
    eps: f32,
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "layer norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let name = CustomOp3::name(self);
        let (xs, weight) = (slice(name, xs, layout)?, slice(name, weight, weight_layout)?);
        let bias = slice(name, bias, bias_layout)?;
        let width = weight.len();
        if width == 0 || bias.len() != width || layout.dims().last() != Some(&width) {
            bail!("{name}: expected (.., {width}), got {:?}", layout.shape());
        }
        let mut out = vec![0f32; xs.len()];
        // Rows of about 64 KiB a task.
        let len = width * (16_384 / width).max(1);
        out.par_chunks_mut(len).zip(xs.par_chunks(len)).for_each(|(out, xs)| {
            pulp::Arch::new().dispatch(Rows { xs, out, weight, bias, eps: self.eps });
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

struct Rows<'a> {
    xs: &'a [f32],
    out: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        for (xs, out) in self.xs.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let (groups, tail) = S::as_simd_f32s(xs);
            let mut sum = simd.splat_f32s(0.0);
            for &x in groups {
                sum = simd.add_f32s(sum, x);
            }
            let mut total = simd.reduce_sum_f32s(sum);
            for x in tail {
                total += x;
            }
            let mean = total / width as f32;
            let mut squares = simd.splat_f32s(0.0);
            for &x in groups {
                let x = simd.sub_f32s(x, simd.splat_f32s(mean));
                squares = simd.mul_add_e_f32s(x, x, squares);
            }
            let mut total = simd.reduce_sum_f32s(squares);
            for x in tail {
                total += (x - mean) * (x - mean);
            }
            let scale = 1.0 / (total / width as f32 + self.eps).sqrt();
            for (((out, x), weight), bias) in out.iter_mut().zip(xs).zip(self.weight).zip(self.bias) {
                *out = (x - mean) * scale * weight + bias;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, rel_rms};

    #[test]
    fn agrees_with_plain_operations() {
        for width in [1, 5, 16, 48, 99] {
            let norm = LayerNorm::new(random(1, width), random(2, width), 1e-6);
            let xs = (random(3, (2, 7, width)) + 3.0).unwrap();
            let (got, want) = (norm.forward(&xs).unwrap(), norm.forward_candle(&xs).unwrap());
            assert!(rel_rms(&got, &want) < 1e-5, "{width}");
            assert!(norm.forward(&random(1, (2, width + 1))).is_err());
        }
    }
}
