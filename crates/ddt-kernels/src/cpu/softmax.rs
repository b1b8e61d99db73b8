//! The numerator of a softmax, in place.

use pulp::Simd;

use super::exp::exp;
use super::lanes::update;

/// Replaces `row` by `exp(row - max(row))` and returns the sum.
///
/// A NaN anywhere, a maximum of plus infinity, or nothing but minus infinities make the sum NaN.
#[inline(always)]
pub(super) fn exponentials<S: Simd>(simd: S, row: &mut [f32]) -> f32 {
    let top = simd.splat_f32s(max(simd, row));
    let (groups, _) = S::as_mut_simd_f32s(row);
    let mut sums = [simd.splat_f32s(0.0); 2];
    let mut pairs = groups.chunks_exact_mut(2);
    for pair in &mut pairs {
        for (sum, group) in sums.iter_mut().zip(pair) {
            *group = exp(simd, simd.sub_f32s(*group, top));
            *sum = simd.add_f32s(*sum, *group);
        }
    }
    for group in pairs.into_remainder() {
        *group = exp(simd, simd.sub_f32s(*group, top));
        sums[0] = simd.add_f32s(sums[0], *group);
    }
    let tail = row.len() % S::F32_LANES;
    let tail = row.len() - tail..;
    let mut sum = simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1]));
    update(
        simd,
        [&mut row[tail.clone()]],
        [],
        #[inline(always)]
        |[x], []| [exp(simd, simd.sub_f32s(x, top))],
    );
    row[tail].iter().for_each(|x| sum += x);
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
