//! What both passes of [`crate::attention`] share: the inputs, and one head's queries, keys and values.

use pulp::{Simd, c32};

use super::element::Element;
use super::head::norm_turn;
use super::matmul::padded;

mod backward;
mod forward;

pub(crate) use backward::backward;
pub(crate) use forward::{forward, forward_into};

/// Query rows that are processed at once, against all keys.
const BLOCK_ROWS: usize = 64;

/// What both passes read; all slices are contiguous.
///
/// The weights are those of the query and key norms as f32, the query's divided by `sqrt(K)`, which scales
/// the logits.
pub(crate) struct Inputs<'a, T> {
    qkv: &'a [T],
    q_weight: Vec<f32>,
    k_weight: Vec<f32>,
    turns: &'a [c32],
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
        padded(self.tokens) + super::matmul::PAD
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
        (q_weight, k_weight): (&[T], &[T]),
        turns: &'a [c32],
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
        Self { qkv, q_weight, k_weight: widened(k_weight, 1.0), turns, sizes, eps }
    }

    fn row(&self, task: usize, token: usize, part: Part) -> &[T] {
        &self.qkv[self.sizes.qkv_at(task, token, part)..][..self.sizes.head_dim]
    }

    fn turn(&self, token: usize) -> &[c32] {
        let pairs = self.sizes.head_dim / 2;
        &self.turns[token * pairs..][..pairs]
    }

    /// Writes the normed, turned and scaled query of `token`.
    #[inline(always)]
    fn query<S: Simd>(&self, simd: S, task: usize, token: usize, raw: &mut [f32], out: &mut [f32]) {
        let x = T::view(self.row(task, token, Part::Query), raw);
        norm_turn(simd, x, &self.q_weight, self.turn(token), self.eps, out);
    }

    /// Writes the normed and turned key of `token`.
    #[inline(always)]
    fn key<S: Simd>(&self, simd: S, task: usize, token: usize, raw: &mut [f32], out: &mut [f32]) {
        let x = T::view(self.row(task, token, Part::Key), raw);
        norm_turn(simd, x, &self.k_weight, self.turn(token), self.eps, out);
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

/// Cuts the next `len` elements off `buffer`.
fn take<'a, T>(buffer: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (head, tail) = std::mem::take(buffer).split_at_mut(len);
    *buffer = tail;
    head
}
