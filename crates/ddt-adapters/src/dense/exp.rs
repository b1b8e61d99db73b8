//! The exponential of what is not positive, and the activations made of it.

use pulp::Simd;

/// `e^x` for `x <= 0`, within two units in the last place; below -87 it is `e^-87`. NaN stays NaN.
///
/// ```text
/// e^x = 2^n e^r,   n = round(x / ln 2),   r = x - n ln 2
/// ```
///
/// with the Taylor series of `e^r` to the seventh power, whose remainder is below 6e-9.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let low = simd.splat_f32s(-87.0);
    let x = simd.select_f32s(simd.less_than_f32s(x, low), low, x);
    // Adding 1.5 * 2^23 + 127 rounds to an integer and leaves n + 127, the exponent's bits, in the lowest.
    let magic = simd.splat_f32s(12_582_912.0 + 127.0);
    let rounded = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), magic);
    let n = simd.sub_f32s(rounded, magic);
    // ln 2 in two parts, the first with few enough bits for n times it to be exact.
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-0.693_359_4), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(2.121_944_4e-4), r);
    let mut p = simd.splat_f32s(1.0 / 5040.0);
    for inverse in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(inverse));
    }
    let power = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    simd.mul_f32s(p, simd.transmute_f32s_u32s(power))
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let (zero, one) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0));
    let e = exp(simd, simd.neg_f32s(simd.abs_f32s(x)));
    let numerator = simd.select_f32s(simd.less_than_f32s(x, zero), e, one);
    simd.div_f32s(simd.mul_f32s(x, numerator), simd.add_f32s(one, e))
}

/// `x` times the standard normal distribution's mass below `x`.
///
/// The mass beyond `|x|` is formula 7.1.26 of Abramowitz and Stegun, within 1e-7.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let (zero, one) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0));
    let z = simd.abs_f32s(x);
    // 0.3275911 / sqrt(2): the argument of erf is z / sqrt(2).
    let t = simd.div_f32s(one, simd.mul_add_e_f32s(z, simd.splat_f32s(0.231_641_89), one));
    let mut p = simd.splat_f32s(0.5 * 1.061_405_4);
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = simd.mul_add_e_f32s(p, t, simd.splat_f32s(0.5 * coefficient));
    }
    let e = exp(simd, simd.mul_f32s(simd.mul_f32s(z, z), simd.splat_f32s(-0.5)));
    let beyond = simd.mul_f32s(simd.mul_f32s(p, t), e);
    let below = simd.select_f32s(simd.less_than_f32s(x, zero), beyond, simd.sub_f32s(one, beyond));
    simd.mul_f32s(x, below)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct All<'a>(&'a [f32]);

    impl pulp::WithSimd for All<'_> {
        type Output = Vec<[f32; 3]>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            let mut all = Vec::new();
            for &x in self.0 {
                let x = simd.splat_f32s(x);
                let mut ys = [0f32; 3];
                for (y, value) in ys.iter_mut().zip([
                    exp(simd, simd.neg_f32s(simd.abs_f32s(x))),
                    silu(simd, x),
                    gelu(simd, x),
                ]) {
                    simd.partial_store_f32s(std::slice::from_mut(y), value);
                }
                all.push(ys);
            }
            all
        }
    }

    #[test]
    fn agree_with_double_precision_under_every_instruction_set() {
        let xs: Vec<f32> = (-9000..9000).map(|i| i as f32 / 1000.0).chain([-80.0, 80.0]).collect();
        let mut sets = vec![pulp::Arch::Scalar, pulp::Arch::new()];
        #[cfg(target_arch = "x86_64")]
        sets.extend(pulp::x86::V3::try_new().map(pulp::Arch::V3));
        for set in sets {
            for (&x, [exp, silu, gelu]) in xs.iter().zip(set.dispatch(All(&xs))) {
                let (x, [exp, silu, gelu]) = (f64::from(x), [exp, silu, gelu].map(f64::from));
                let want = (-x.abs()).exp();
                assert!((exp / want - 1.0).abs() < 3e-7, "exp {x}: {exp:e} {want:e}");
                let want = x / (1.0 + (-x).exp());
                assert!((silu - want).abs() < 3e-7 * want.abs().max(1e-30), "silu {x}: {silu:e} {want:e}");
                let want = 0.5 * x * (1.0 + erf(x / 2f64.sqrt()));
                assert!((gelu - want).abs() < 2e-6, "gelu {x}: {gelu:e} {want:e}");
            }
        }
        for [exp, silu, gelu] in pulp::Arch::new().dispatch(All(&[f32::NAN])) {
            assert!(exp.is_nan() && silu.is_nan() && gelu.is_nan());
        }
    }

    /// erf by Simpson's rule.
    fn erf(x: f64) -> f64 {
        let n = 2000;
        let h = x / f64::from(n);
        let f = |i: i32| (-(f64::from(i) * h).powi(2)).exp();
        let inner: f64 = (1..n).map(|i| f(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
        2.0 / std::f64::consts::PI.sqrt() * h / 3.0 * (f(0) + inner + f(n))
    }
}
