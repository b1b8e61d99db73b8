//! Forward pass: per block of query rows, logits, their exponentials, and the weighted sum of values.
#![expect(unsafe_code, reason = "heads write interleaved rows of one result")]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{BLOCK_ROWS, Inputs, Part, Sizes, take, transpose};
use crate::cpu::dispatch;
use crate::cpu::element::Element;
use crate::cpu::fresh::zeros;
use crate::cpu::lanes::update;
use crate::cpu::matmul::{Strided, matmul};
use crate::cpu::scatter::Scatter;
use crate::cpu::softmax::exponentials;

/// The result, (B, L, N K).
pub(crate) fn forward<T: Element>(inputs: &Inputs<'_, T>) -> Vec<T> {
    let sizes = inputs.sizes;
    let mut out = zeros(sizes.tasks() * sizes.tokens * sizes.head_dim);
    let rows = Scatter::new(&mut out);
    (0..sizes.tasks()).into_par_iter().for_each_init(
        || vec![0.0; Scratch::len(&sizes)],
        |buffer, task| {
            let scratch = Scratch::new(&sizes, buffer);
            dispatch(Head { inputs, task, scratch, out: &rows });
        },
    );
    out
}

/// Where one head is worked on. Columns of padding hold leftovers that nothing depends on.
struct Scratch<'a> {
    /// A raw row, and a row of the result.
    raw: &'a mut [f32],
    /// Keys and values, L rows.
    keys: &'a mut [f32],
    values: &'a mut [f32],
    /// Keys transposed, K rows.
    keys_t: &'a mut [f32],
    /// Queries, logits and results of a block.
    queries: &'a mut [f32],
    logits: &'a mut [f32],
    outs: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn len(sizes: &Sizes) -> usize {
        let block = BLOCK_ROWS.min(sizes.tokens);
        (1 + 2 * sizes.tokens + 2 * block) * sizes.row() + (sizes.head_dim + block) * sizes.token_row()
    }

    fn new(sizes: &Sizes, mut buffer: &'a mut [f32]) -> Self {
        let block = BLOCK_ROWS.min(sizes.tokens);
        let (row, token_row) = (sizes.row(), sizes.token_row());
        Self {
            raw: take(&mut buffer, row),
            keys: take(&mut buffer, sizes.tokens * row),
            values: take(&mut buffer, sizes.tokens * row),
            keys_t: take(&mut buffer, sizes.head_dim * token_row),
            queries: take(&mut buffer, block * row),
            logits: take(&mut buffer, block * token_row),
            outs: take(&mut buffer, block * row),
        }
    }
}

struct Head<'a, T> {
    inputs: &'a Inputs<'a, T>,
    task: usize,
    scratch: Scratch<'a>,
    out: &'a Scatter<'a, T>,
}

impl<T: Element> WithSimd for Head<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, task, scratch, out } = self;
        let Scratch { raw, keys, values, keys_t, queries, logits, outs } = scratch;
        let sizes = &inputs.sizes;
        let (l, k, row, token_row) = (sizes.tokens, sizes.head_dim, sizes.row(), sizes.token_row());
        for token in 0..l {
            inputs.key(simd, task, token, raw, &mut keys[token * row..][..k]);
            T::widen(inputs.row(task, token, Part::Value), &mut values[token * row..][..k]);
        }
        transpose(sizes, keys, keys_t);
        for first in (0..l).step_by(BLOCK_ROWS) {
            let block = BLOCK_ROWS.min(l - first);
            for (i, query) in queries.chunks_exact_mut(row).take(block).enumerate() {
                inputs.query(simd, task, first + i, raw, &mut query[..k]);
            }
            let left = Strided { data: queries, row, col: 1 };
            let columns = token_row - super::super::matmul::PAD;
            matmul(simd, (block, columns, k), left, (keys_t, token_row), (logits, token_row), false);
            let mut sums = [0.0; BLOCK_ROWS];
            for (sum, logits) in sums.iter_mut().zip(logits.chunks_exact_mut(token_row)).take(block) {
                *sum = exponentials(simd, &mut logits[..l]);
            }
            let left = Strided { data: logits, row: token_row, col: 1 };
            matmul(simd, (block, row, l), left, (values, row), (outs, row), false);
            for (i, sum) in sums.into_iter().enumerate().take(block) {
                let result = &outs[i * row..][..k];
                // SAFETY: each (task, token) has its own K elements, and each task runs once.
                let out = unsafe { out.range_mut(sizes.out_at(task, first + i), k) };
                let inverse = simd.splat_f32s(1.0 / sum);
                update(
                    simd,
                    [T::view_mut(out, raw)],
                    [result],
                    #[inline(always)]
                    |_, [x]| [simd.mul_f32s(x, inverse)],
                );
                T::commit(out, raw);
            }
        }
    }
}
