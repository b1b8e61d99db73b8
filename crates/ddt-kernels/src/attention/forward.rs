//! Forward pass: per strip of query rows, logits, their exponentials, and the weighted sum of values.
//!
//! Both matmuls are [tiles of a GEMM](crate::cpu::microkernel) in the element's own arithmetic: a head's keys and
//! values are packed as B, and a strip as tall as a tile goes through both while it is in cache.
#![expect(
    unsafe_code,
    reason = "reads operands through pointers; heads write interleaved rows of one result"
)]

use std::ops::Range;

use pulp::Simd;
use rayon::prelude::*;

use super::inputs::{Inputs, Part, Sizes};
use crate::cpu::buffers::{Scratch, take};
use crate::cpu::element::Element;
use crate::cpu::exp::exponentials;
use crate::cpu::gemm::{Destination, collect};
use crate::cpu::lanes::update;
use crate::cpu::microkernel::{
    EMPTY, MAX_COLS, MAX_ROWS, Microkernel, Operand, Strip, WithMicrokernel, columns, form,
};
use crate::instruction_set::instructions;

/// The result, (B, L, N K).
pub(crate) fn forward<T: Element>(inputs: &Inputs<'_, T>) -> Vec<T> {
    let Sizes { batch, tokens, heads, head_dim } = inputs.sizes;
    let width = heads * head_dim;
    collect(batch * tokens * width, |out| run(inputs, &Destination::new(out, width)))
}

/// [`forward`] over a buffer.
pub(crate) fn forward_into<T: Element>(inputs: &Inputs<'_, T>, out: &mut [T]) {
    let Sizes { batch, tokens, heads, head_dim } = inputs.sizes;
    assert_eq!(out.len(), batch * tokens * heads * head_dim);
    run(inputs, &Destination::over(out, heads * head_dim));
}

fn run<T: Element>(inputs: &Inputs<'_, T>, out: &Destination<'_, T>) {
    let sizes = inputs.sizes;
    // With fewer heads than threads, each is cut into blocks of queries, which pack the same keys and values again.
    let blocks = rayon::current_num_threads().div_ceil(sizes.tasks().max(1));
    let rows = sizes
        .tokens
        .div_ceil(blocks)
        .max(MIN_QUERIES)
        .next_multiple_of(form::<T::Operand>(instructions()).rows);
    let blocks = sizes.tokens.div_ceil(rows);
    (0..sizes.tasks() * blocks).into_par_iter().for_each_init(
        || (Scratch::take(wide_len(&sizes)), Scratch::take(operands_len::<T::Operand>(&sizes))),
        |(wide, operands), block| {
            let (task, first) = (block / blocks, block % blocks * rows);
            let queries = first..(first + rows).min(sizes.tokens);
            T::Operand::dispatch(instructions(), Head { inputs, task, queries, wide, operands, out });
        },
    );
}

/// Queries of a block, at least: so many are worth packing a head's keys and values for.
const MIN_QUERIES: usize = 128;

/// Length of a strip's row over tokens: whole panels, and a lane group that keeps successive rows out of the
/// same cache sets when L is a power of two.
fn token_row(sizes: &Sizes) -> usize {
    sizes.tokens.next_multiple_of(MAX_COLS) + 16
}

/// Elements of an operand of `width` columns, packed for any instruction set.
fn packed_len<F: Operand>(depth: usize, width: usize) -> usize {
    depth.next_multiple_of(F::DEPTHS) * width.next_multiple_of(MAX_COLS)
}

/// A raw row, a finished row, and a strip of logits.
fn wide_len(sizes: &Sizes) -> usize {
    2 * sizes.row() + MAX_ROWS * token_row(sizes)
}

/// Keys, values, strips of queries and of probabilities, and a step of raw values.
fn operands_len<F: Operand>(sizes: &Sizes) -> usize {
    let Sizes { tokens, head_dim, .. } = *sizes;
    packed_len::<F>(head_dim, tokens)
        + packed_len::<F>(tokens, head_dim)
        + MAX_ROWS * (sizes.row() + token_row(sizes))
        + F::DEPTHS * sizes.row()
}

/// Some queries of one head of one image. Buffers hold leftovers, so everything that is read is written first.
struct Head<'a, T: Element> {
    inputs: &'a Inputs<'a, T>,
    task: usize,
    queries: Range<usize>,
    wide: &'a mut [f32],
    operands: &'a mut [T::Operand],
    out: &'a Destination<'a, T>,
}

impl<T: Element> WithMicrokernel<T::Operand> for Head<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_microkernel<K: Microkernel<Elem = T::Operand>>(self, mut kernel: K) {
        let Self { inputs, task, queries: block, mut wide, mut operands, out } = self;
        let (simd, stride, depths) = (kernel.simd(), columns::<K::Simd>(), T::Operand::DEPTHS);
        let sizes = &inputs.sizes;
        let Sizes { tokens, heads, head_dim, .. } = *sizes;
        let (row, token_row) = (sizes.row(), token_row(sizes));
        let raw = take(&mut wide, row);
        let normed = &mut take(&mut wide, row)[..head_dim];
        let logits = take(&mut wide, MAX_ROWS * token_row);
        let keys = take(&mut operands, packed_len::<T::Operand>(head_dim, tokens));
        let values = take(&mut operands, packed_len::<T::Operand>(tokens, head_dim));
        let queries = take(&mut operands, MAX_ROWS * row);
        let probabilities = take(&mut operands, MAX_ROWS * token_row);

        let (key_steps, value_steps) = (head_dim.div_ceil(depths), tokens.div_ceil(depths));
        let (key_panel, value_panel) = (key_steps * stride * depths, value_steps * stride * depths);
        for token in 0..tokens {
            // `queries` holds no query yet.
            inputs.key(simd, task, token, raw, normed);
            let key = &mut queries[..key_steps * depths];
            T::Operand::narrow(normed, &mut key[..head_dim]);
            key[head_dim..].fill(T::Operand::default());
            let column = &mut keys[token / stride * key_panel + token % stride * depths..];
            for (to, from) in column.chunks_mut(stride * depths).zip(key.chunks_exact(depths)) {
                to[..depths].copy_from_slice(from);
            }
        }
        // Steps of tokens; probabilities past the last token are zero, which only a number keeps zero.
        let rows = take(&mut operands, T::Operand::DEPTHS * row);
        for step in 0..value_steps {
            for (part, values) in rows.chunks_exact_mut(row).enumerate() {
                let token = step * depths + part;
                if token < tokens {
                    T::widen(inputs.row(task, token, Part::Value), normed);
                    T::Operand::narrow(normed, &mut values[..head_dim]);
                } else {
                    values.fill(T::Operand::default());
                }
            }
            for panel in 0..head_dim.div_ceil(stride) {
                let to = &mut values[panel * value_panel + step * stride * depths..][..stride * depths];
                let cols = stride.min(head_dim - panel * stride);
                for (part, from) in rows.chunks_exact(row).enumerate() {
                    let from = &from[panel * stride..][..cols];
                    for (to, x) in to.chunks_exact_mut(depths).zip(from) {
                        to[part] = *x;
                    }
                }
            }
        }

        let mut sums = EMPTY;
        let mut first = block.start;
        while first < block.end {
            let height = kernel.next_rows(block.end - first);
            for (i, query) in queries.chunks_exact_mut(row).take(height).enumerate() {
                inputs.query(simd, task, first + i, raw, normed);
                T::Operand::narrow(normed, &mut query[..head_dim]);
                query[head_dim..key_steps * depths].fill(T::Operand::default());
            }
            for (panel, keys) in keys.chunks_exact(key_panel).take(tokens.div_ceil(stride)).enumerate() {
                let a = Strip { at: queries.as_ptr(), row, step: depths };
                // SAFETY: `queries` has `height` rows of `row` elements, at least `key_steps` steps, and `keys` is a
                // panel of as many.
                unsafe { kernel.tile(height, key_steps, a, keys.as_ptr(), &mut sums) };
                for (sums, logits) in
                    sums.chunks_exact(stride).zip(logits.chunks_exact_mut(token_row)).take(height)
                {
                    logits[panel * stride..][..stride].copy_from_slice(sums);
                }
            }
            let mut inverses = [0.0; MAX_ROWS];
            for (inverse, logits) in inverses.iter_mut().zip(logits.chunks_exact_mut(token_row)).take(height)
            {
                *inverse = 1.0 / exponentials(simd, &mut logits[..tokens]);
                logits[tokens..value_steps * depths].fill(0.0);
            }
            let probabilities = T::Operand::rounded(&logits[..height * token_row], probabilities);
            for (panel, values) in
                values.chunks_exact(value_panel).take(head_dim.div_ceil(stride)).enumerate()
            {
                let a = Strip { at: probabilities.as_ptr(), row: token_row, step: depths };
                // SAFETY: `probabilities` has `height` rows of `token_row` elements, at least `value_steps` steps, and
                // `values` is a panel of as many.
                unsafe { kernel.tile(height, value_steps, a, values.as_ptr(), &mut sums) };
                let cols = stride.min(head_dim - panel * stride);
                for (i, inverse) in inverses.into_iter().enumerate().take(height) {
                    let inverse = simd.splat_f32s(inverse);
                    let mut result = [0.0; MAX_COLS];
                    update(
                        simd,
                        [&mut result[..stride]],
                        [&sums[i * stride..][..stride]],
                        #[inline(always)]
                        |_, [x]| [simd.mul_f32s(x, inverse)],
                    );
                    let (image, head) = (task / heads, task % heads);
                    // SAFETY: each (task, token) has its own K elements, and each task runs once.
                    unsafe {
                        out.write(
                            image * tokens + first + i,
                            head * head_dim + panel * stride,
                            cols,
                            &result,
                        );
                    }
                }
            }
            first += height;
        }
    }
}
