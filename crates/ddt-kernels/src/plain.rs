//! The fused operations of candle's own: differentiable, on any device, and in any float type. They are the reference of
//! the fused ones' tests.

use candle_core::{D, Result, Tensor};

use crate::rope::RopeTable;

pub(crate) fn silu(x: &Tensor) -> Result<Tensor> {
    x / (x.neg()?.exp()? + 1.0)?
}

pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&rms)?.broadcast_mul(weight)
}

pub(crate) fn layer_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    centred.broadcast_div(&deviation)
}

/// The first half of the columns of `shift_scale` is the shift.
pub(crate) fn modulate(normed: &Tensor, shift_scale: &Tensor) -> Result<Tensor> {
    let parts = shift_scale.chunk(2, D::Minus1)?;
    normed.broadcast_mul(&(&parts[1] + 1.0)?)?.broadcast_add(&parts[0])
}

/// Elements (2m, 2m + 1) of each row of `x`, (B, L, N, K), as one complex number, by the table's row of its token.
pub(crate) fn rotate(x: &Tensor, rope: &RopeTable) -> Result<Tensor> {
    let (b, l, n, k) = x.dims4()?;
    let table = |table: &Tensor| table.to_dtype(x.dtype())?.reshape((1, l, 1, k / 2));
    let (cos, sin) = (table(rope.cos())?, table(rope.sin())?);
    let pairs = x.reshape((b, l, n, k / 2, 2))?;
    let (re, im) = (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?);
    let rotated_re = (re.broadcast_mul(&cos)? - im.broadcast_mul(&sin)?)?;
    let rotated_im = (re.broadcast_mul(&sin)? + im.broadcast_mul(&cos)?)?;
    Tensor::stack(&[rotated_re, rotated_im], 4)?.reshape((b, l, n, k))
}

/// Attention of `qkv`, (B, L, 3 N K). With `norms`, the weights of queries and keys and what is added to their mean of
/// squares, both are normed. The operands of both matmuls go through `rounded`.
pub(crate) fn attention(
    qkv: &Tensor,
    norms: Option<([&Tensor; 2], f64)>,
    rope: &RopeTable,
    n: usize,
    rounded: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (b, l, width) = qkv.dims3()?;
    let k = width / (3 * n);
    let parts = qkv.reshape((b, l, 3, n, k))?;
    let part = |i| parts.narrow(2, i, 1)?.squeeze(2);
    let heads = |x: &Tensor| x.transpose(1, 2)?.contiguous(); // (B, N, L, K)
    let normed = |i: usize| match norms {
        None => part(i),
        Some((weights, eps)) => rms_norm(&part(i)?, weights[i], eps),
    };
    let query = heads(&(rotate(&normed(0)?, rope)? / (k as f64).sqrt())?)?;
    let key = heads(&rotate(&normed(1)?, rope)?)?;
    let value = heads(&part(2)?)?;
    let logits = rounded(&query)?.matmul(&rounded(&key)?.t()?.contiguous()?)?;
    // The softmax is the same whatever is subtracted, so that has no gradient.
    let weights = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let sums = weights.sum_keepdim(D::Minus1)?;
    let probabilities = rounded(&weights)?.broadcast_div(&sums)?;
    probabilities.matmul(&value)?.transpose(1, 2)?.reshape((b, l, n * k))
}

/// The 3 x 3 surroundings of each place of `x`, (B, R, C, D): shifted copies, side by side.
pub(crate) fn neighbours(x: &Tensor) -> Result<Tensor> {
    let (_, rows, columns, _) = x.dims4()?;
    let padded = x.pad_with_zeros(1, 1, 1)?.pad_with_zeros(2, 1, 1)?;
    let tap = |i: usize| padded.narrow(1, i / 3, rows)?.narrow(2, i % 3, columns);
    Tensor::cat(&(0..9).map(tap).collect::<Result<Vec<_>>>()?, 3)
}
