//! The numerator of a softmax, in place.

use pulp::Simd;

use super::exp::exp;
use super::lanes::{fold, update};

/// Replaces `row` by `exp(row - max(row))` and returns the sum.
///
/// A NaN anywhere, a maximum of plus infinity, or nothing but minus infinities make the sum NaN.
#[inline(always)]
pub(super) fn exponentials<S: Simd>(simd: S, row: &mut [f32]) -> f32 {
    let top = simd.splat_f32s(max(simd, row));
    update(
        simd,
        [&mut *row],
        [],
        #[inline(always)]
        |[x], []| [exp(simd, simd.sub_f32s(x, top))],
    );
    let [sum] = fold(
        simd,
        [&*row],
        #[inline(always)]
        |[sum], [x]| [simd.add_f32s(sum, x)],
    );
    sum
}

#[inline(always)]
fn max<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let (groups, tail) = S::as_simd_f32s(row);
    let lowest = simd.splat_f32s(f32::NEG_INFINITY);
    let mut tops = [lowest; 4];
    let mut quads = groups.chunks_exact(4);
    for quad in &mut quads {
        for (top, group) in tops.iter_mut().zip(quad) {
            *top = simd.max_f32s(*top, *group);
        }
    }
    for group in quads.remainder() {
        tops[0] = simd.max_f32s(tops[0], *group);
    }
    let top = simd.max_f32s(simd.max_f32s(tops[0], tops[1]), simd.max_f32s(tops[2], tops[3]));
    tail.iter().fold(simd.reduce_max_f32s(top), |top, x| top.max(*x))
}
