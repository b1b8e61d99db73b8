//! One query or key row of one head: RMSNorm with weight, then the rotary turn, and back.

use pulp::{Simd, bytemuck, c32};

use super::lanes::{fold, update};
use super::rms_norm_modulate::inverse_rms;

/// `out = turn(x / sqrt(mean(x^2) + eps) * weight)`.
#[inline(always)]
pub(super) fn norm_turn<S: Simd>(
    simd: S,
    x: &[f32],
    weight: &[f32],
    turns: &[c32],
    eps: f32,
    out: &mut [f32],
) {
    let rstd = simd.splat_f32s(inverse_rms(simd, x, eps));
    update(
        simd,
        [&mut *out],
        [x, weight],
        #[inline(always)]
        |_, [x, weight]| [simd.mul_f32s(simd.mul_f32s(x, rstd), weight)],
    );
    turn(
        simd,
        out,
        turns,
        #[inline(always)]
        |turn, pair| simd.mul_c32s(turn, pair),
    );
}

/// From the gradient of [`norm_turn`]'s result to that of `x`, which replaces it.
///
/// With h = x rstd and g the gradient turned back: the gradient of `weight` grows by g h, and that of `x`
/// is rstd (g weight - h mean(g weight h)).
#[inline(always)]
pub(super) fn norm_turn_backward<S: Simd>(
    simd: S,
    x: &[f32],
    weight: &[f32],
    turns: &[c32],
    eps: f32,
    grad: &mut [f32],
    grad_weight: &mut [f32],
) {
    turn(
        simd,
        grad,
        turns,
        #[inline(always)]
        |turn, pair| simd.conj_mul_c32s(turn, pair),
    );
    let [squares, dot] = fold(
        simd,
        [x, weight, &*grad],
        #[inline(always)]
        |[squares, dot], [x, weight, grad]| {
            let gw = simd.mul_f32s(grad, weight);
            [simd.mul_add_e_f32s(x, x, squares), simd.mul_add_e_f32s(gw, x, dot)]
        },
    );
    let inverse = 1.0 / x.len() as f32;
    let rstd = 1.0 / (squares * inverse + eps).sqrt();
    let pull = simd.splat_f32s(-rstd * rstd * dot * inverse);
    let rstd = simd.splat_f32s(rstd);
    update(
        simd,
        [grad, grad_weight],
        [x, weight],
        #[inline(always)]
        |[grad, grad_weight], [x, weight]| {
            let grad_h = simd.mul_add_e_f32s(x, pull, simd.mul_f32s(grad, weight));
            [simd.mul_f32s(rstd, grad_h), simd.mul_add_e_f32s(grad, simd.mul_f32s(x, rstd), grad_weight)]
        },
    );
}

/// Replaces every pair of neighbours in `row`, as one complex number, by `f(turn, pair)`.
#[inline(always)]
fn turn<S: Simd>(simd: S, row: &mut [f32], turns: &[c32], f: impl Fn(S::c32s, S::c32s) -> S::c32s) {
    let pairs: &mut [c32] = bytemuck::cast_slice_mut(row);
    let (pairs, last_pairs) = S::as_mut_simd_c32s(pairs);
    let (turns, last_turns) = S::as_simd_c32s(turns);
    for (pair, turn) in pairs.iter_mut().zip(turns) {
        *pair = f(*turn, *pair);
    }
    if !last_pairs.is_empty() {
        let pair = simd.partial_load_c32s(&*last_pairs);
        simd.partial_store_c32s(last_pairs, f(simd.partial_load_c32s(last_turns), pair));
    }
}
