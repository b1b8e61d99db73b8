//! Query-key norm: RMSNorm with a weight of one head's row, then the rotary positions, and back; and without the norm.

use pulp::{Simd, bytemuck, c32};

use crate::cpu::lanes::{fold, update};

/// `out = rotate(x * scale * weight)`; with `scale = 1 / sqrt(mean(x^2) + eps)`, the query-key norm.
#[inline(always)]
pub(super) fn scale_rotate<S: Simd>(
    simd: S,
    x: &[f32],
    scale: f32,
    weight: &[f32],
    rotations: &[c32],
    out: &mut [f32],
) {
    let scale = simd.splat_f32s(scale);
    update(
        simd,
        [&mut *out],
        [x, weight],
        #[inline(always)]
        |_, [x, weight]| [simd.mul_f32s(simd.mul_f32s(x, scale), weight)],
    );
    rotate(
        simd,
        out,
        rotations,
        #[inline(always)]
        |rotation, pair| simd.mul_c32s(rotation, pair),
    );
}

/// From the gradient of the normed and rotated row to that of `x`, which replaces it.
///
/// With h = x rstd and g the gradient rotated back: the gradient of `weight` grows by g h, and that of `x`
/// is rstd (g weight - h mean(g weight h)).
#[inline(always)]
pub(super) fn norm_rotate_backward<S: Simd>(
    simd: S,
    x: &[f32],
    weight: &[f32],
    rotations: &[c32],
    eps: f32,
    grad: &mut [f32],
    grad_weight: &mut [f32],
) {
    rotate_back(simd, grad, rotations);
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

/// From the gradient of [`scale_rotate`]'s result, with a scale of 1, to that of `x`, which replaces it.
#[inline(always)]
pub(super) fn scale_rotate_backward<S: Simd>(simd: S, weight: &[f32], rotations: &[c32], grad: &mut [f32]) {
    rotate_back(simd, grad, rotations);
    update(
        simd,
        [grad],
        [weight],
        #[inline(always)]
        |[grad], [weight]| [simd.mul_f32s(grad, weight)],
    );
}

/// Undoes the rotation of a row.
#[inline(always)]
fn rotate_back<S: Simd>(simd: S, row: &mut [f32], rotations: &[c32]) {
    rotate(
        simd,
        row,
        rotations,
        #[inline(always)]
        |rotation, pair| simd.conj_mul_c32s(rotation, pair),
    );
}

/// Replaces every pair of neighbours in `row`, as one complex number, by `f(rotation, pair)`.
#[inline(always)]
fn rotate<S: Simd>(simd: S, row: &mut [f32], rotations: &[c32], f: impl Fn(S::c32s, S::c32s) -> S::c32s) {
    let pairs: &mut [c32] = bytemuck::cast_slice_mut(row);
    let (pairs, last_pairs) = S::as_mut_simd_c32s(pairs);
    let (rotations, last_rotations) = S::as_simd_c32s(rotations);
    for (pair, rotation) in pairs.iter_mut().zip(rotations) {
        *pair = f(*rotation, *pair);
    }
    if !last_pairs.is_empty() {
        let pair = simd.partial_load_c32s(&*last_pairs);
        simd.partial_store_c32s(last_pairs, f(simd.partial_load_c32s(last_rotations), pair));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::instruction_sets;
    use crate::rms_norm_modulate::inverse_rms;

    struct ThereAndBack<'a> {
        x: &'a [f32],
        rotations: &'a [c32],
        grad: &'a mut [f32],
    }

    impl pulp::WithSimd for ThereAndBack<'_> {
        type Output = (Vec<f32>, Vec<f32>);

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            let ones = vec![1.0; self.x.len()];
            let (mut out, mut grad_weight) = (ones.clone(), vec![0.0; self.x.len()]);
            let scale = inverse_rms(simd, self.x, 0.0);
            scale_rotate(simd, self.x, scale, &ones, self.rotations, &mut out);
            norm_rotate_backward(simd, self.x, &ones, self.rotations, 0.0, self.grad, &mut grad_weight);
            (out, grad_weight)
        }
    }

    #[test]
    fn a_gradient_that_is_the_result_comes_back_unrotated() {
        for arch in instruction_sets() {
            for k in [4, 8, 12, 24, 32, 72] {
                let x: Vec<f32> = (0..k).map(|i| (i as f32 * 0.7).sin() + 0.1).collect();
                let rotations: Vec<c32> =
                    (0..k / 2).map(|m| c32::new((m as f32).cos(), (m as f32).sin())).collect();
                let rms = (x.iter().map(|x| x * x).sum::<f32>() / k as f32).sqrt();
                let normed: Vec<f32> = x.iter().map(|x| x / rms).collect();
                let pairs = normed
                    .chunks_exact(2)
                    .zip(&rotations)
                    .map(|(pair, rotation)| rotation * c32::new(pair[0], pair[1]));
                let rotated: Vec<f32> = pairs.flat_map(|pair| [pair.re, pair.im]).collect();

                let mut grad = rotated.clone();
                let (out, grad_weight) =
                    arch.dispatch(ThereAndBack { x: &x, rotations: &rotations, grad: &mut grad });
                let near =
                    |got: &[f32], want: &[f32]| got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5);
                assert!(near(&out, &rotated), "K = {k}: {out:?}");
                // Along itself the normed row cannot move, and its weight moves it by its square.
                assert!(near(&grad, &vec![0.0; k]), "K = {k}: {grad:?}");
                let squares: Vec<f32> = normed.iter().map(|x| x * x).collect();
                assert!(near(&grad_weight, &squares), "K = {k}: {grad_weight:?}");
            }
        }
    }
}
