//! Backward pass: per block of query rows, the probabilities again, then all gradients.
#![expect(unsafe_code, reason = "heads write interleaved rows of one gradient")]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::inputs::{BLOCK_ROWS, Before, Inputs, Part, Sizes, transpose};
use super::qk_norm::{norm_rotate_backward, scale_rotate_backward};
use super::small_matmul::{PAD, Rows, matmul};
use crate::cpu::buffers::{Scatter, take, zeros};
use crate::cpu::dispatch;
use crate::cpu::element::Element;
use crate::cpu::exp::exponentials;
use crate::cpu::gemm::Matrix;
use crate::cpu::lanes::{fold, update};
use crate::cpu::rows::sum_rows;

/// Gradients of `qkv`, `q_weight` and `k_weight`.
pub(crate) fn backward<T: Element>(inputs: &Inputs<'_, T>, grad: &[T]) -> (Vec<T>, [Vec<f32>; 2]) {
    let sizes = inputs.sizes;
    let width = 2 * sizes.head_dim;
    let mut grad_qkv = zeros(inputs.qkv.len());
    let mut grad_weights = vec![0.0; sizes.tasks() * width];
    let rows = Scatter::new(&mut grad_qkv);
    grad_weights.par_chunks_exact_mut(width).enumerate().for_each_init(
        || vec![0.0; Scratch::len(&sizes)],
        |buffer, (task, grad_weights)| {
            let scratch = Scratch::new(&sizes, buffer);
            dispatch(Head { inputs, grad, task, scratch, grad_weights, grad_qkv: &rows });
        },
    );
    let mut grad_q_weight = sum_rows(&grad_weights, width);
    let grad_k_weight = grad_q_weight.split_off(sizes.head_dim);
    // The tasks differentiate by the scaled weight.
    grad_q_weight.iter_mut().for_each(|grad| *grad *= sizes.logit_scale());
    (grad_qkv, [grad_q_weight, grad_k_weight])
}

/// Working memory of one head. Columns of padding hold leftovers that nothing depends on.
struct Scratch<'a> {
    raw: &'a mut [f32],
    /// Queries, keys and gradients of the result, L rows; values are in `grad_values` until transposed.
    queries: &'a mut [f32],
    keys: &'a mut [f32],
    grads: &'a mut [f32],
    /// Keys and values transposed, K rows.
    keys_t: &'a mut [f32],
    values_t: &'a mut [f32],
    /// Sums over all blocks, L rows.
    grad_keys: &'a mut [f32],
    grad_values: &'a mut [f32],
    /// Of a block: probabilities, gradients of logits, gradients of queries.
    probabilities: &'a mut [f32],
    grad_logits: &'a mut [f32],
    grad_queries: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn len(sizes: &Sizes) -> usize {
        let block = BLOCK_ROWS.min(sizes.tokens);
        (1 + 5 * sizes.tokens + block) * sizes.row() + 2 * (sizes.head_dim + block) * sizes.token_row()
    }

    fn new(sizes: &Sizes, mut buffer: &'a mut [f32]) -> Self {
        let block = BLOCK_ROWS.min(sizes.tokens);
        let (rows, token_row) = (sizes.tokens * sizes.row(), sizes.token_row());
        Self {
            raw: take(&mut buffer, sizes.row()),
            queries: take(&mut buffer, rows),
            keys: take(&mut buffer, rows),
            grads: take(&mut buffer, rows),
            keys_t: take(&mut buffer, sizes.head_dim * token_row),
            values_t: take(&mut buffer, sizes.head_dim * token_row),
            grad_keys: take(&mut buffer, rows),
            grad_values: take(&mut buffer, rows),
            probabilities: take(&mut buffer, block * token_row),
            grad_logits: take(&mut buffer, block * token_row),
            grad_queries: take(&mut buffer, block * sizes.row()),
        }
    }
}

struct Head<'a, T> {
    inputs: &'a Inputs<'a, T>,
    grad: &'a [T],
    task: usize,
    scratch: Scratch<'a>,
    grad_weights: &'a mut [f32],
    grad_qkv: &'a Scatter<'a, T>,
}

impl<T: Element> WithSimd for Head<'_, T> {
    type Output = ();

    // With P the probabilities, S the logits, G the gradient of P V:
    // grad_V = P^T G, grad_P = G V^T, grad_S = P (grad_P - rowsum(P grad_P)), grad_Q = grad_S K,
    // grad_K = grad_S^T Q; then back through rotation and norm.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, grad, task, scratch, grad_weights, grad_qkv } = self;
        let Scratch { raw, queries, keys, grads, keys_t, values_t, grad_keys, grad_values, .. } = scratch;
        let Scratch { probabilities, grad_logits, grad_queries, .. } = scratch;
        let sizes = &inputs.sizes;
        let (l, k, row, token_row) = (sizes.tokens, sizes.head_dim, sizes.row(), sizes.token_row());
        let columns = token_row - PAD;
        for token in 0..l {
            let at = token * row;
            inputs.query(simd, task, token, raw, &mut queries[at..][..k]);
            inputs.key(simd, task, token, raw, &mut keys[at..][..k]);
            T::widen(inputs.row(task, token, Part::Value), &mut grad_values[at..][..k]);
            T::widen(&grad[sizes.out_at(task, token)..][..k], &mut grads[at..][..k]);
        }
        transpose(sizes, keys, keys_t);
        transpose(sizes, grad_values, values_t);

        let (grad_q_weight, grad_k_weight) = grad_weights.split_at_mut(k);
        for first in (0..l).step_by(BLOCK_ROWS) {
            let block = BLOCK_ROWS.min(l - first);
            let queries = &queries[first * row..][..block * row];
            let grads = &grads[first * row..][..block * row];
            let a = |data| Matrix { data, rows: block, cols: k, row, col: 1 };
            let logits = Rows { data: &mut *probabilities, row: token_row };
            matmul(simd, a(queries), Rows { data: keys_t, row: token_row }, logits, columns, false);
            let grad_probabilities = Rows { data: &mut *grad_logits, row: token_row };
            matmul(
                simd,
                a(grads),
                Rows { data: values_t, row: token_row },
                grad_probabilities,
                columns,
                false,
            );
            let pairs =
                probabilities.chunks_exact_mut(token_row).zip(grad_logits.chunks_exact_mut(token_row));
            for (probabilities, grad_logits) in pairs.take(block) {
                softmax_backward(simd, &mut probabilities[..l], &mut grad_logits[..l]);
            }

            let accumulate = first > 0;
            let transposed = |data| Matrix { data, rows: l, cols: block, row: 1, col: token_row };
            let (a, b) = (transposed(probabilities), Rows { data: grads, row });
            matmul(simd, a, b, Rows { data: &mut *grad_values, row }, row, accumulate);
            let (a, b) = (transposed(grad_logits), Rows { data: queries, row });
            matmul(simd, a, b, Rows { data: &mut *grad_keys, row }, row, accumulate);
            let a = Matrix { data: grad_logits, rows: block, cols: l, row: token_row, col: 1 };
            matmul(simd, a, Rows { data: keys, row }, Rows { data: &mut *grad_queries, row }, row, false);

            for (i, grad) in grad_queries.chunks_exact_mut(row).take(block).enumerate() {
                let token = first + i;
                let x = T::view(inputs.row(task, token, Part::Query), raw);
                let grad = &mut grad[..k];
                inputs.backward(simd, x, &inputs.q_weight, token, grad, grad_q_weight);
                // SAFETY: each (task, token, part) has its own K elements, and each task runs once.
                T::narrow(grad, unsafe { grad_qkv.range_mut(sizes.qkv_at(task, token, Part::Query), k) });
            }
        }
        for token in 0..l {
            let x = T::view(inputs.row(task, token, Part::Key), raw);
            let grad = &mut grad_keys[token * row..][..k];
            inputs.backward(simd, x, &inputs.k_weight, token, grad, grad_k_weight);
            // SAFETY: as above.
            T::narrow(grad, unsafe { grad_qkv.range_mut(sizes.qkv_at(task, token, Part::Key), k) });
            let grad = &grad_values[token * row..][..k];
            // SAFETY: as above.
            T::narrow(grad, unsafe { grad_qkv.range_mut(sizes.qkv_at(task, token, Part::Value), k) });
        }
    }
}

impl<T: Element> Inputs<'_, T> {
    /// From the gradient of a query or a key to that of its row `x` of `qkv`, which replaces it; adds that of `weight`.
    #[inline(always)]
    fn backward<S: Simd>(
        &self,
        simd: S,
        x: &[f32],
        weight: &[f32],
        token: usize,
        grad: &mut [f32],
        grad_weight: &mut [f32],
    ) {
        let rotations = self.rotations(token);
        match self.before {
            Before::NormRotate => {
                norm_rotate_backward(simd, x, weight, rotations, self.eps, grad, grad_weight);
            }
            // The weight is the logits' scale.
            Before::Rotate => scale_rotate_backward(simd, weight, rotations, grad),
            // Of the forward pass only.
            Before::Nothing => {}
        }
    }
}

/// From logits to probabilities, and from their gradient to that of the logits, both in place.
#[inline(always)]
fn softmax_backward<S: Simd>(simd: S, logits: &mut [f32], grad: &mut [f32]) {
    let inverse = simd.splat_f32s(1.0 / exponentials(simd, logits));
    let [dot] = fold(
        simd,
        [&*logits, &*grad],
        #[inline(always)]
        |[dot], [e, grad]| [simd.mul_add_e_f32s(e, grad, dot)],
    );
    let mean = simd.mul_f32s(simd.splat_f32s(dot), inverse);
    update(
        simd,
        [logits, grad],
        [],
        #[inline(always)]
        |[e, grad], []| {
            let p = simd.mul_f32s(e, inverse);
            [p, simd.mul_f32s(p, simd.sub_f32s(grad, mean))]
        },
    );
}
