//! Self-attention with query-key norm and rotary positions, and without either.

use candle_core::{Result, Tensor, bail};
use pulp::{Simd, c32};

use crate::cpu::element::Element;
use crate::cpu::lanes::update;
use crate::op::{FusedOp, Gradient, apply, check_shape, dims_bld};
use crate::rope::RopeTable;
use qk_norm::norm_rotate;
use small_matmul::{PAD, padded};

mod backward;
mod forward;
mod qk_norm;
mod small_matmul;
mod softmax;
#[cfg(test)]
mod tests;

pub(crate) use backward::backward;
pub(crate) use forward::{forward, forward_into};
pub use softmax::softmax_attention;

const NAME: &str = "attention";

/// Self-attention with query-key norm and rotary positions, from one projection to the merged heads.
///
/// ```text
/// q = rotate(q / sqrt(mean(q^2) + eps) * q_weight), k likewise
/// out = softmax(q k^T / sqrt(K)) v
/// ```
///
/// The attention of every block of arXiv:2504.05741, between its two projections; no mask.
/// `rotate` multiplies elements (2m, 2m + 1) of token l, as one complex number, by `rope`'s row l, column m.
/// The L x L matrix of a head never exists as a whole; the backward pass recomputes it block by block.
/// Differentiable in `qkv` and both weights.
/// Computed in f32, except that bf16 queries, keys and probabilities are rounded before their matmuls, whose sums are
/// f32; the result has the dtype of `qkv`.
///
/// # Shapes
///
/// `qkv`: (B, L, 3 N K), laid out (3, N, K) in the last axis; `q_weight`, `k_weight`: (K); `rope`: L tokens
/// of head size K; `num_heads`: N; result: (B, L, N K). K is a multiple of 4.
///
/// # Errors
///
/// If a shape is another, if dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn attention(
    qkv: &Tensor,
    q_weight: &Tensor,
    k_weight: &Tensor,
    rope: &RopeTable,
    num_heads: usize,
    eps: f64,
) -> Result<Tensor> {
    let sizes = Sizes::of_qkv(qkv, num_heads)?;
    let Sizes { batch, tokens, heads, head_dim } = sizes;
    for (name, weight) in [("q_weight", q_weight), ("k_weight", k_weight)] {
        check_shape(NAME, name, weight, &[head_dim])?;
    }
    if (rope.num_tokens(), rope.head_dim()) != (tokens, head_dim) {
        bail!(
            "{NAME}: expected a rope table of {tokens} tokens and head size {head_dim}, got {} tokens and {}",
            rope.num_tokens(),
            rope.head_dim()
        );
    }
    let op = Attention { rope: rope.clone(), sizes, eps: eps as f32 };
    apply(op, (batch, tokens, heads * head_dim), [qkv, q_weight, k_weight])
}

struct Attention {
    rope: RopeTable,
    sizes: Sizes,
    eps: f32,
}

impl<T: Element> FusedOp<T, 3> for Attention {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 3] = ["qkv", "q_weight", "k_weight"];

    fn forward(&self, [qkv, q_weight, k_weight]: [&[T]; 3]) -> Vec<T> {
        forward(&Inputs::new(qkv, [q_weight, k_weight], self.rope.rotations(), self.sizes, self.eps))
    }

    fn backward(&self, [qkv, q_weight, k_weight]: [&[T]; 3], grad: &[T], _: [bool; 3]) -> [Gradient<T>; 3] {
        let inputs = Inputs::new(qkv, [q_weight, k_weight], self.rope.rotations(), self.sizes, self.eps);
        backward(&inputs, grad).map(Gradient::Of)
    }
}

/// Query rows that are processed at once, against all keys.
const BLOCK_ROWS: usize = 64;

/// The inputs of both passes.
pub(crate) struct Inputs<'a, T> {
    qkv: &'a [T],
    /// Divided by `sqrt(K)`, which scales the logits.
    q_weight: Vec<f32>,
    k_weight: Vec<f32>,
    /// Whether queries and keys are only multiplied by these weights, neither normed nor rotated.
    plain: bool,
    rotations: &'a [c32],
    sizes: Sizes,
    eps: f32,
}

/// B, L, N and K.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
}

/// Which third of `qkv`.
#[derive(Debug, Clone, Copy)]
enum Part {
    Query,
    Key,
    Value,
}

impl Sizes {
    fn of_qkv(qkv: &Tensor, heads: usize) -> Result<Self> {
        let Ok((batch, tokens, width)) = qkv.dims3() else {
            bail!("{NAME}: expected qkv of shape (B, L, 3 N K), got {:?}", qkv.shape());
        };
        if heads == 0 || width == 0 || !width.is_multiple_of(3 * heads) {
            bail!("{NAME}: expected qkv of width 3 N K with N = {heads} heads, got width {width}");
        }
        let head_dim = width / (3 * heads);
        if !head_dim.is_multiple_of(4) {
            bail!("{NAME}: expected a head size that is a multiple of 4, got {head_dim}");
        }
        Ok(Self { batch, tokens, heads, head_dim })
    }

    /// The attention of a block of `x`, (B, L, D), with N = D / K heads.
    pub(crate) fn of_block(op: &str, x: &Tensor, rope: &RopeTable, heads: usize) -> Result<Self> {
        let (batch, tokens, d) = dims_bld(op, x)?;
        let (head_dim, num_tokens) = (rope.head_dim(), rope.num_tokens());
        if heads.checked_mul(head_dim) != Some(d) || !head_dim.is_multiple_of(4) || num_tokens != tokens {
            bail!(
                "{op}: expected {heads} heads of a size that is a multiple of 4 and {tokens} tokens for x of {:?}, \
                 got a rope table of head size {head_dim} and {num_tokens} tokens",
                x.shape()
            );
        }
        Ok(Self { batch, tokens, heads, head_dim })
    }

    /// Heads of the whole batch, each of which is one task.
    fn tasks(&self) -> usize {
        self.batch * self.heads
    }

    /// `1 / sqrt(K)`.
    fn logit_scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Length of a padded row of one head.
    fn row(&self) -> usize {
        padded(self.head_dim)
    }

    /// Length of a padded row over tokens. One more lane group keeps successive rows out of the same
    /// cache sets when L is a power of two.
    fn token_row(&self) -> usize {
        padded(self.tokens) + PAD
    }

    /// Where the row of `token` begins in `qkv`, of the head of `task`.
    fn qkv_at(&self, task: usize, token: usize, part: Part) -> usize {
        let (image, head) = (task / self.heads, task % self.heads);
        (((image * self.tokens + token) * 3 + part as usize) * self.heads + head) * self.head_dim
    }

    /// Where the row of `token` begins in the result, of the head of `task`.
    fn out_at(&self, task: usize, token: usize) -> usize {
        let (image, head) = (task / self.heads, task % self.heads);
        ((image * self.tokens + token) * self.heads + head) * self.head_dim
    }
}

impl<'a, T: Element> Inputs<'a, T> {
    pub(crate) fn new(
        qkv: &'a [T],
        [q_weight, k_weight]: [&[T]; 2],
        rotations: &'a [c32],
        sizes: Sizes,
        eps: f32,
    ) -> Self {
        let widened = |weight: &[T], scale: f32| {
            let mut wide = vec![0.0; weight.len()];
            T::widen(weight, &mut wide);
            wide.iter_mut().for_each(|x| *x *= scale);
            wide
        };
        let q_weight = widened(q_weight, sizes.logit_scale());
        let k_weight = widened(k_weight, 1.0);
        Self { qkv, q_weight, k_weight, plain: false, rotations, sizes, eps }
    }

    /// Without norms and positions, for the forward pass only.
    pub(crate) fn plain(qkv: &'a [T], sizes: Sizes) -> Self {
        let weight = |x| vec![x; sizes.head_dim];
        let (q_weight, k_weight) = (weight(sizes.logit_scale()), weight(1.0));
        Self { qkv, q_weight, k_weight, plain: true, rotations: &[], sizes, eps: 0.0 }
    }

    fn row(&self, task: usize, token: usize, part: Part) -> &[T] {
        &self.qkv[self.sizes.qkv_at(task, token, part)..][..self.sizes.head_dim]
    }

    fn rotations(&self, token: usize) -> &[c32] {
        let pairs = self.sizes.head_dim / 2;
        &self.rotations[token * pairs..][..pairs]
    }

    /// Writes the normed, rotated and scaled query of `token`.
    #[inline(always)]
    fn query<S: Simd>(&self, simd: S, task: usize, token: usize, raw: &mut [f32], out: &mut [f32]) {
        let x = T::view(self.row(task, token, Part::Query), raw);
        self.finish(simd, x, &self.q_weight, token, out);
    }

    /// Writes the normed and rotated key of `token`.
    #[inline(always)]
    fn key<S: Simd>(&self, simd: S, task: usize, token: usize, raw: &mut [f32], out: &mut [f32]) {
        let x = T::view(self.row(task, token, Part::Key), raw);
        self.finish(simd, x, &self.k_weight, token, out);
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, x: &[f32], weight: &[f32], token: usize, out: &mut [f32]) {
        if self.plain {
            return update(
                simd,
                [out],
                [x, weight],
                #[inline(always)]
                |_, [x, weight]| [simd.mul_f32s(x, weight)],
            );
        }
        norm_rotate(simd, x, weight, self.rotations(token), self.eps, out);
    }
}

/// Writes the matrix of which `rows` (L, `row`) holds the rows, transposed, to `out`, (K, `token_row`).
#[inline(always)]
fn transpose(sizes: &Sizes, rows: &[f32], out: &mut [f32]) {
    let (row, token_row) = (sizes.row(), sizes.token_row());
    for column in 0..sizes.head_dim {
        let out = &mut out[column * token_row..][..sizes.tokens];
        for (out, row) in out.iter_mut().zip(rows.chunks_exact(row)) {
            *out = row[column];
        }
    }
}
