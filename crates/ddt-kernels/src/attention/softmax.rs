//! Self-attention without norms and positions.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::{bf16, f16};

use super::forward::forward;
use super::inputs::{Inputs, Sizes};
use crate::cpu::element::Element;
use crate::op::{check_alike, check_frozen, with_slices};

const NAME: &str = "softmax_attention";

/// Self-attention, from one projection to the merged heads.
///
/// ```text
/// out = softmax(q k^T / sqrt(K)) v
/// ```
///
/// The L x L matrix of a head never exists as a whole. Computed in f32, but that in bf16 queries, keys and
/// probabilities are rounded to it before their matmuls, whose sums are f32; the result has the dtype of `qkv`.
/// Not differentiable.
///
/// # Shapes
///
/// `qkv`: (B, L, 3 N K), laid out (3, N, K) in the last axis; `num_heads`: N; result: (B, L, N K).
///
/// # Errors
/// If the shape is another, or if the dtype is not f32, bf16 or f16.
pub fn softmax_attention(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = match *qkv.dims() {
        [batch, tokens, width] if num_heads > 0 && width > 0 && width.is_multiple_of(3 * num_heads) => {
            (batch, tokens, width)
        }
        ref got => {
            bail!("{NAME}: expected qkv of shape (B, L, 3 N K) with N = {num_heads} heads, got {got:?}")
        }
    };
    let sizes = Sizes { batch, tokens, heads: num_heads, head_dim: width / (3 * num_heads) };
    check_alike(NAME, &[("qkv", qkv)])?;
    check_frozen(NAME, &[("qkv", qkv)])?;
    let out = match qkv.dtype() {
        DType::BF16 => run::<bf16>(qkv, sizes),
        DType::F16 => run::<f16>(qkv, sizes),
        _ => run::<f32>(qkv, sizes),
    };
    out?.reshape((batch, tokens, width / 3))
}

fn run<T: Element>(qkv: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let out = with_slices([qkv], |[qkv]| forward(&Inputs::<T>::plain(qkv, sizes)))?;
    let len = out.len();
    Tensor::from_vec(out, len, &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use candle_core::D;

    use super::*;
    use crate::testing::filled;

    /// By plain operations, in f64.
    fn plain(qkv: &Tensor, heads: usize) -> Tensor {
        let (b, tokens, width) = qkv.dims3().unwrap();
        let parts = qkv.to_dtype(DType::F64).unwrap().reshape((b, tokens, 3, heads, ())).unwrap();
        let parts = parts.permute((2, 0, 3, 1, 4)).unwrap().contiguous().unwrap(); // (3, B, N, L, K)
        let [q, k, v] = [0, 1, 2].map(|i| parts.get(i).unwrap());
        let scale = 1.0 / ((width / 3 / heads) as f64).sqrt();
        let scores = (q.matmul(&k.t().unwrap()).unwrap() * scale).unwrap();
        let highest = scores.max_keepdim(D::Minus1).unwrap();
        let weights = scores.broadcast_sub(&highest).unwrap().exp().unwrap();
        let sums = weights.sum_keepdim(D::Minus1).unwrap();
        let out = weights.broadcast_div(&sums).unwrap().matmul(&v).unwrap();
        out.transpose(1, 2).unwrap().reshape((b, tokens, width / 3)).unwrap()
    }

    fn farthest(got: &Tensor, want: &Tensor) -> f64 {
        assert_eq!(got.dims(), want.dims());
        let apart = (got.to_dtype(DType::F64).unwrap() - want).unwrap().abs().unwrap();
        apart.max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn agrees_with_plain_operations() {
        // The last is one head that several threads share.
        let sizes = [(1, 1, 1, 1), (2, 5, 3, 4), (1, 37, 2, 33), (2, 257, 1, 16), (1, 300, 1, 130)];
        for (b, tokens, heads, head_dim) in sizes {
            let qkv = (filled((b, tokens, 3 * heads * head_dim), 0.0) * 4.0).unwrap();
            let want = plain(&qkv, heads);
            let got = softmax_attention(&qkv, heads).unwrap();
            assert!(farthest(&got, &want) < 2e-5, "{tokens} {heads} {head_dim}");
            let qkv = qkv.to_dtype(DType::BF16).unwrap();
            let got = softmax_attention(&qkv, heads).unwrap();
            assert!(farthest(&got, &plain(&qkv, heads)) < 0.1, "{tokens} {heads} {head_dim}");
        }
    }

    #[test]
    fn wrong_widths_are_errors_and_nan_stays_in_its_image() {
        assert!(softmax_attention(&filled((1, 4, 10), 0.0), 1).is_err());
        assert!(softmax_attention(&filled((1, 4, 12), 0.0), 0).is_err());
        let mut values = vec![0.5f32; 2 * 3 * 12];
        values[12] = f32::NAN;
        let qkv = Tensor::from_vec(values, (2, 3, 12), &Device::Cpu).unwrap();
        let ys = softmax_attention(&qkv, 1).unwrap().to_vec3::<f32>().unwrap();
        assert!(ys[0][1][0].is_nan() && ys[1].iter().flatten().all(|y| *y == 0.5));
    }
}
