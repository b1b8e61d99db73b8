//! The exponential in SIMD lanes, and functions made of it: SiLU and the numerator of a softmax.

use pulp::Simd;

use super::lanes::update;

/// `e^x`, within two units in the last place.
///
/// With `n = round(x / ln 2)` and `r = x - n ln 2`, `e^x = 2^n e^r`, and `e^r` is a polynomial of degree
/// six on `|r| <= ln 2 / 2` (relative error 3e-9 before rounding).
/// Infinity above 88.73, gradual underflow below -87.34, zero below -104; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Beyond these the result is infinity or zero already. Comparing, instead of taking minimum and
    // maximum, lets NaN through.
    let high = simd.splat_f32s(89.0);
    let low = simd.splat_f32s(-105.0);
    let x = simd.select_f32s(simd.greater_than_f32s(x, high), high, x);
    let x = simd.select_f32s(simd.less_than_f32s(x, low), low, x);

    // Adding 1.5 * 2^23 + 254 rounds to an integer and leaves n + 254 in the low bits.
    let magic = simd.splat_f32s(12_582_912.0 + 254.0);
    let rounded = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), magic);
    let n = simd.sub_f32s(rounded, magic);
    // ln 2 in two parts, the first short enough for n times it to be exact.
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-0.693_145_75), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-1.428_606_8e-6), r);

    let p = simd.splat_f32s(0.001_381_457_1);
    let p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(0.008_368_725));
    let p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(0.041_668_39));
    let p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(0.166_665_21));
    let p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(0.499_999_94));
    let one = simd.splat_f32s(1.0);
    let p = simd.mul_add_e_f32s(p, simd.mul_f32s(r, r), simd.add_f32s(r, one));

    // 2^n as a product of two powers: n itself can be outside the range of one exponent. The shift by
    // 23 drops every bit of the magic number that is not part of n + 254.
    let bits = simd.transmute_u32s_f32s(rounded);
    let shift = simd.splat_u32s(23);
    let half = simd.wrapping_dyn_shr_u32s(bits, simd.splat_u32s(1));
    let first = simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(half, shift));
    let rest = simd.wrapping_dyn_shl_u32s(simd.sub_u32s(bits, half), shift);
    simd.mul_f32s(simd.mul_f32s(p, first), simd.transmute_f32s_u32s(rest))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    simd.div_f32s(one, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))))
}

/// `x sigmoid(x)`; NaN at minus infinity, where the product is undefined.
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    simd.div_f32s(x, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))))
}

/// The value and the derivative of [`silu`]: with `s = sigmoid(x)`, `x s` and `s (1 + x (1 - s))`.
#[inline(always)]
pub(crate) fn silu_and_slope<S: Simd>(simd: S, x: S::f32s) -> (S::f32s, S::f32s) {
    let one = simd.splat_f32s(1.0);
    let s = sigmoid(simd, x);
    let slope = simd.mul_add_e_f32s(x, simd.sub_f32s(one, s), one);
    (simd.mul_f32s(x, s), simd.mul_f32s(s, slope))
}

/// Replaces `row` by `exp(row - max(row))` and returns the sum.
///
/// A NaN anywhere, a maximum of plus infinity, or nothing but minus infinities make the sum NaN.
#[inline(always)]
pub(crate) fn exponentials<S: Simd>(simd: S, row: &mut [f32]) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::super::lanes;
    use super::*;
    use crate::instruction_set::instruction_sets;

    struct Exp<'a>(&'a [f32], &'a mut [f32]);

    impl pulp::WithSimd for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            lanes::update(
                simd,
                [self.1],
                [self.0],
                #[inline(always)]
                |_, [x]| [exp(simd, x)],
            );
        }
    }

    /// The exponentials by every instruction set.
    fn exps(xs: &[f32]) -> Vec<Vec<f32>> {
        let by_set = |arch: crate::instruction_set::Instructions| {
            let mut out = vec![0.0; xs.len()];
            arch.dispatch(Exp(xs, &mut out));
            out
        };
        instruction_sets().into_iter().map(by_set).collect()
    }

    #[test]
    fn relative_error_is_within_two_units_in_the_last_place() {
        let xs: Vec<f32> = (-87_000..88_700).map(|i| i as f32 / 1000.0).collect();
        for got in exps(&xs) {
            let error = |(&x, got): (&f32, f32)| {
                let want = f64::from(x).exp();
                ((f64::from(got) - want) / want).abs()
            };
            let worst = xs.iter().zip(got).map(error).fold(0.0, f64::max);
            assert!(worst < 2e-7, "worst relative error {worst:e}");
        }
    }

    #[test]
    fn extremes_are_exact() {
        let xs = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 88.73, -104.0, f32::NAN];
        for got in exps(&xs) {
            assert_eq!(got[..2], [1.0, 1.0]);
            assert_eq!(got[2..8], [f32::INFINITY, 0.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0]);
            assert!(got[8].is_nan());
        }
        for got in exps(&[-100.0]) {
            assert!((got[0] / 3.78e-44 - 1.0).abs() < 0.03, "gradual underflow gives {:e}", got[0]);
        }
    }
}
