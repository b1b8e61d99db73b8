//! Softmax attention without mask.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::exp::exp;
use super::panels::{PANEL, Panels};
use super::tile::{MAX_ROWS, Runs, rows_of, tile};
use super::{is_ours, slice};

/// `softmax(q k^T) v` for every head; scaling is the caller's, in the weights of `q`.
///
/// `qkv: (B, L, 3 N K)` laid out (3, N, K), to `(B, L, N K)`, with N = `num_heads`.
pub(crate) fn attention(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    let (b, tokens, width) = qkv.dims3()?;
    if num_heads == 0 || !width.is_multiple_of(3 * num_heads) || qkv.elem_count() == 0 {
        bail!("expected qkv (B, L, 3 N K) with N = {num_heads}, got {:?}", qkv.shape());
    }
    let heads = if is_ours(qkv) {
        qkv.contiguous()?.apply_op1(Attention { num_heads })? // (B, N, L, K)
    } else {
        attention_candle(qkv, num_heads)?
    };
    heads.transpose(1, 2)?.reshape((b, tokens, width / 3))
}

fn attention_candle(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    let (b, tokens, _) = qkv.dims3()?;
    let heads = qkv.reshape((b, tokens, 3, num_heads, ()))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
    let (q, k, v) = (heads.get(0)?, heads.get(1)?, heads.get(2)?); // (B, N, L, K)
    let scores = q.matmul(&k.t()?)?;
    candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)
}

struct Attention {
    num_heads: usize,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "frozen attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = slice(self.name(), qkv, layout)?;
        let (b, tokens, width) = layout.shape().dims3()?;
        let (heads, head_dim) = (self.num_heads, width / (3 * self.num_heads));
        let mut out = vec![0f32; b * tokens * width / 3];
        out.par_chunks_mut(tokens * head_dim).enumerate().for_each(|(task, out)| {
            let first = task / heads * tokens * width + task % heads * head_dim;
            pulp::Arch::new().dispatch(Head { qkv: &qkv[first..], width, tokens, head_dim, out });
        });
        Ok((CpuStorage::F32(out), Shape::from((b, heads, tokens, head_dim))))
    }
}

/// One head of one image: its query of token 0 begins `qkv`, and `width` numbers later that of token 1.
struct Head<'a> {
    qkv: &'a [f32],
    width: usize,
    tokens: usize,
    head_dim: usize,
    out: &'a mut [f32],
}

impl WithSimd for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { qkv, width, tokens, head_dim, out } = self;
        let row = |part: usize, token: usize| &qkv[token * width + part * width / 3..][..head_dim];
        let mut keys = Panels::zeros(head_dim, tokens);
        keys.fill_columns((0..tokens).map(|token| row(1, token)));
        let mut values = Panels::zeros(tokens, head_dim);
        values.fill_rows((0..tokens).map(|token| row(2, token)));

        let score_row = tokens.next_multiple_of(PANEL);
        let mut scores = vec![0f32; MAX_ROWS * score_row];
        let mut score_starts = [0; MAX_ROWS];
        for (i, start) in score_starts.iter_mut().enumerate() {
            *start = i * score_row;
        }
        for first in (0..tokens).step_by(rows_of::<S>()) {
            let mut starts = [0; MAX_ROWS];
            for (i, start) in starts.iter_mut().enumerate() {
                *start = (first + i).min(tokens - 1) * width;
            }
            for (index, panel) in keys.iter().enumerate() {
                tile(
                    simd,
                    (qkv, &starts, Runs::row(head_dim)),
                    panel,
                    PANEL,
                    #[inline(always)]
                    |i, column, sums| {
                        let at = i * score_row + index * PANEL + column;
                        simd.partial_store_f32s(&mut scores[at..at + S::F32_LANES], sums);
                    },
                );
            }
            let mut scales = [0f32; MAX_ROWS];
            for (scale, scores) in scales.iter_mut().zip(scores.chunks_exact_mut(score_row)) {
                *scale = 1.0 / exponentials(simd, &mut scores[..tokens]);
            }
            for (index, panel) in values.iter().enumerate() {
                tile(
                    simd,
                    (&scores, &score_starts, Runs::row(tokens)),
                    panel,
                    head_dim - index * PANEL,
                    #[inline(always)]
                    |i, column, sums| {
                        let column = index * PANEL + column;
                        if first + i < tokens && column < head_dim {
                            let at = (first + i) * head_dim;
                            let len = S::F32_LANES.min(head_dim - column);
                            let out = &mut out[at + column..][..len];
                            simd.partial_store_f32s(out, simd.mul_f32s(sums, simd.splat_f32s(scales[i])));
                        }
                    },
                );
            }
        }
    }
}

/// Replaces `row` by `e^(row - max)` and returns the sum.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, row: &mut [f32]) -> f32 {
    let (groups, tail) = S::as_simd_f32s(row);
    let mut top = simd.splat_f32s(f32::NEG_INFINITY);
    for &group in groups {
        top = simd.max_f32s(top, group);
    }
    let mut highest = simd.reduce_max_f32s(top);
    for &x in tail {
        highest = highest.max(x);
    }
    let top = simd.splat_f32s(highest);
    let (groups, tail) = S::as_mut_simd_f32s(row);
    let mut sums = simd.splat_f32s(0.0);
    for group in groups {
        *group = exp(simd, simd.sub_f32s(*group, top));
        sums = simd.add_f32s(sums, *group);
    }
    let mut sum = simd.reduce_sum_f32s(sums);
    if !tail.is_empty() {
        let last = exp(simd, simd.sub_f32s(simd.partial_load_f32s(tail), top));
        simd.partial_store_f32s(tail, last);
        for x in tail {
            sum += *x;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, rel_rms};

    #[test]
    fn agrees_with_plain_operations() {
        for (b, tokens, heads, head_dim) in [(1, 1, 1, 1), (2, 5, 3, 4), (1, 37, 2, 33), (2, 257, 1, 16)] {
            let qkv = (random(1, (b, tokens, 3 * heads * head_dim)) * 4.0).unwrap();
            let want = attention_candle(&qkv, heads).unwrap().transpose(1, 2).unwrap();
            let want = want.reshape((b, tokens, heads * head_dim)).unwrap();
            assert!(rel_rms(&attention(&qkv, heads).unwrap(), &want) < 1e-5, "{tokens} {heads} {head_dim}");
        }
    }

    #[test]
    fn wrong_widths_are_errors_and_nan_stays_in_its_image() {
        assert!(attention(&random(1, (1, 4, 10)), 1).is_err());
        assert!(attention(&random(1, (1, 4, 12)), 0).is_err());
        let mut values = vec![0.5f32; 2 * 3 * 12];
        values[12] = f32::NAN;
        let qkv = Tensor::from_vec(values, (2, 3, 12), &candle_core::Device::Cpu).unwrap();
        let ys = attention(&qkv, 1).unwrap().to_vec3::<f32>().unwrap();
        assert!(ys[0][1][0].is_nan() && ys[1].iter().flatten().all(|y| *y == 0.5));
    }
}
