//! The inputs of attention: where each row of a head is, and what it is before the logits.

use candle_core::{Result, Tensor, bail};
use pulp::{Simd, c32};

use super::qk_norm::scale_rotate;
use super::small_matmul::{PAD, padded};
use crate::cpu::element::Element;
use crate::cpu::lanes::update;
use crate::op::dims_bld;
use crate::rms_norm_modulate::inverse_rms;
use crate::rope::RopeTable;

/// Query rows that are processed at once, against all keys.
pub(super) const BLOCK_ROWS: usize = 64;

/// The inputs of both passes.
pub(crate) struct Inputs<'a, T> {
    pub(super) qkv: &'a [T],
    /// Divided by `sqrt(K)`, which scales the logits.
    pub(super) q_weight: Vec<f32>,
    pub(super) k_weight: Vec<f32>,
    pub(super) before: Before,
    rotations: &'a [c32],
    pub(super) sizes: Sizes,
    pub(super) eps: f32,
}

/// What happens to queries and keys, beside the multiplication by their weights, before the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// RMSNorm, then rotation.
    NormRotate,
    /// Rotation.
    Rotate,
    /// Nothing.
    Nothing,
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
pub(super) enum Part {
    Query,
    Key,
    Value,
}

impl Sizes {
    /// The attention of one projection, (B, L, 3 N K).
    pub(super) fn of_qkv(op: &str, qkv: &Tensor, heads: usize) -> Result<Self> {
        let Ok((batch, tokens, width)) = qkv.dims3() else {
            bail!("{op}: expected qkv of shape (B, L, 3 N K), got {:?}", qkv.shape());
        };
        if heads == 0 || width == 0 || !width.is_multiple_of(3 * heads) {
            bail!("{op}: expected qkv of width 3 N K with N = {heads} heads, got width {width}");
        }
        let head_dim = width / (3 * heads);
        if !head_dim.is_multiple_of(4) {
            bail!("{op}: expected a head size that is a multiple of 4, got {head_dim}");
        }
        Ok(Self { batch, tokens, heads, head_dim })
    }

    /// Refuses a table of positions for other tokens or another head size.
    pub(super) fn check_rope(&self, op: &str, rope: &RopeTable) -> Result<()> {
        let Self { tokens, head_dim, .. } = *self;
        let got = (rope.num_tokens(), rope.head_dim());
        if got != (tokens, head_dim) {
            bail!(
                "{op}: expected a rope table of {tokens} tokens and head size {head_dim}, got {} tokens and {}",
                got.0,
                got.1
            );
        }
        Ok(())
    }

    /// (B, L, N K).
    pub(super) fn out_shape(&self) -> (usize, usize, usize) {
        (self.batch, self.tokens, self.heads * self.head_dim)
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
    pub(super) fn tasks(&self) -> usize {
        self.batch * self.heads
    }

    /// `1 / sqrt(K)`.
    pub(super) fn logit_scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Length of a padded row of one head.
    pub(super) fn row(&self) -> usize {
        padded(self.head_dim)
    }

    /// Length of a padded row over tokens. One more lane group keeps successive rows out of the same
    /// cache sets when L is a power of two.
    pub(super) fn token_row(&self) -> usize {
        padded(self.tokens) + PAD
    }

    /// Where the row of `token` begins in `qkv`, of the head of `task`.
    pub(super) fn qkv_at(&self, task: usize, token: usize, part: Part) -> usize {
        let (image, head) = (task / self.heads, task % self.heads);
        (((image * self.tokens + token) * 3 + part as usize) * self.heads + head) * self.head_dim
    }

    /// Where the row of `token` begins in the result, of the head of `task`.
    pub(super) fn out_at(&self, task: usize, token: usize) -> usize {
        let (image, head) = (task / self.heads, task % self.heads);
        ((image * self.tokens + token) * self.heads + head) * self.head_dim
    }
}

impl<'a, T: Element> Inputs<'a, T> {
    pub(crate) fn new<W: Element>(
        qkv: &'a [T],
        [q_weight, k_weight]: [&[W]; 2],
        rotations: &'a [c32],
        sizes: Sizes,
        eps: f32,
    ) -> Self {
        let widened = |weight: &[W], scale: f32| {
            let mut wide = vec![0.0; weight.len()];
            W::widen(weight, &mut wide);
            wide.iter_mut().for_each(|x| *x *= scale);
            wide
        };
        let q_weight = widened(q_weight, sizes.logit_scale());
        let k_weight = widened(k_weight, 1.0);
        Self { qkv, q_weight, k_weight, before: Before::NormRotate, rotations, sizes, eps }
    }

    /// Without norms.
    pub(crate) fn rotated(qkv: &'a [T], rotations: &'a [c32], sizes: Sizes) -> Self {
        Self { before: Before::Rotate, rotations, ..Self::plain(qkv, sizes) }
    }

    /// Without norms and positions, for the forward pass only.
    pub(crate) fn plain(qkv: &'a [T], sizes: Sizes) -> Self {
        let weight = |x| vec![x; sizes.head_dim];
        let (q_weight, k_weight) = (weight(sizes.logit_scale()), weight(1.0));
        Self { qkv, q_weight, k_weight, before: Before::Nothing, rotations: &[], sizes, eps: 0.0 }
    }

    pub(super) fn row(&self, task: usize, token: usize, part: Part) -> &[T] {
        &self.qkv[self.sizes.qkv_at(task, token, part)..][..self.sizes.head_dim]
    }

    pub(super) fn rotations(&self, token: usize) -> &[c32] {
        let pairs = self.sizes.head_dim / 2;
        &self.rotations[token * pairs..][..pairs]
    }

    /// Writes the normed, rotated and scaled query of `token`.
    #[inline(always)]
    pub(super) fn query<S: Simd>(
        &self,
        simd: S,
        task: usize,
        token: usize,
        raw: &mut [f32],
        out: &mut [f32],
    ) {
        let x = T::view(self.row(task, token, Part::Query), raw);
        self.finish(simd, x, &self.q_weight, token, out);
    }

    /// Writes the normed and rotated key of `token`.
    #[inline(always)]
    pub(super) fn key<S: Simd>(&self, simd: S, task: usize, token: usize, raw: &mut [f32], out: &mut [f32]) {
        let x = T::view(self.row(task, token, Part::Key), raw);
        self.finish(simd, x, &self.k_weight, token, out);
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, x: &[f32], weight: &[f32], token: usize, out: &mut [f32]) {
        match self.before {
            Before::NormRotate => {
                let scale = inverse_rms(simd, x, self.eps);
                scale_rotate(simd, x, scale, weight, self.rotations(token), out);
            }
            Before::Rotate => scale_rotate(simd, x, 1.0, weight, self.rotations(token), out),
            Before::Nothing => update(
                simd,
                [out],
                [x, weight],
                #[inline(always)]
                |_, [x, weight]| [simd.mul_f32s(x, weight)],
            ),
        }
    }
}

/// Writes the matrix of which `rows` (L, `row`) holds the rows, transposed, to `out`, (K, `token_row`).
#[inline(always)]
pub(super) fn transpose(sizes: &Sizes, rows: &[f32], out: &mut [f32]) {
    let (row, token_row) = (sizes.row(), sizes.token_row());
    for column in 0..sizes.head_dim {
        let out = &mut out[column * token_row..][..sizes.tokens];
        for (out, row) in out.iter_mut().zip(rows.chunks_exact(row)) {
            *out = row[column];
        }
    }
}
