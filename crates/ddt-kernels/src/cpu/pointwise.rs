//! Functions of single elements, over whole tensors or at the end of a GEMM.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::buffers::{Fill, Fresh};
use super::element::{Element, commit, views, views_mut};
use super::exp::{exp, silu, silu_and_slope};
use super::lanes::update;
use crate::instruction_set::dispatch;

/// Elements of one task.
const TASK: usize = 16 * 1024;
/// Elements that pass through scratch at a time, few enough to stay in the first-level cache.
const BLOCK: usize = 1024;

/// A function of `N` numbers with `M` results.
pub(crate) trait Pointwise<const N: usize, const M: usize>: Copy + Send + Sync {
    /// Whether the result is the argument.
    const IDENTITY: bool = false;

    /// The results of every lane. Implementations must be marked `#[inline(always)]`.
    fn apply<S: Simd>(self, simd: S, x: [S::f32s; N]) -> [S::f32s; M];
}

/// `x`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity;

impl Pointwise<1, 1> for Identity {
    const IDENTITY: bool = true;

    #[inline(always)]
    fn apply<S: Simd>(self, _: S, x: [S::f32s; 1]) -> [S::f32s; 1] {
        x
    }
}

/// `silu(x)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Silu;

impl Pointwise<1, 1> for Silu {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, [x]: [S::f32s; 1]) -> [S::f32s; 1] {
        [silu(simd, x)]
    }
}

/// An activation, applied to each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x`.
    None,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x` times the standard normal distribution's mass below `x`: with the error function, not its approximation
    /// by a hyperbolic tangent.
    Gelu,
}

impl Pointwise<1, 1> for Activation {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, [x]: [S::f32s; 1]) -> [S::f32s; 1] {
        [match self {
            Self::None => x,
            Self::Relu => {
                // Not a maximum, which would hide a NaN.
                let zero = simd.splat_f32s(0.0);
                simd.select_f32s(simd.less_than_f32s(x, zero), zero, x)
            }
            Self::Silu => silu(simd, x),
            Self::Gelu => gelu(simd, x),
        }]
    }
}

/// See [`Activation::Gelu`]. The mass beyond `|x|` is formula 7.1.26 of Abramowitz and Stegun, within 1e-7.
#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
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

/// From `x` and the gradient of `silu(x)` to the gradient of `x`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SiluGradient;

impl Pointwise<2, 1> for SiluGradient {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, [x, grad]: [S::f32s; 2]) -> [S::f32s; 1] {
        [simd.mul_f32s(grad, silu_and_slope(simd, x).1)]
    }
}

/// `f` of every element of `inputs`, which have one length, rounded to `O`.
pub(crate) fn map<T: Element, O: Element, F: Pointwise<N, M>, const N: usize, const M: usize>(
    f: F,
    inputs: [&[T]; N],
) -> [Vec<O>; M] {
    let len = inputs.first().map_or(0, |it| it.len());
    let mut outs: [Fresh<O>; M] = std::array::from_fn(|_| Fresh::new(len));
    let tasks = (0..len.div_ceil(TASK)).map(|i| i * TASK..len.min((i + 1) * TASK));
    let parts = outs.each_mut().map(|it| it.parts(tasks.clone().map(|it| it.len())).collect::<Vec<_>>());
    let tasks: Vec<_> = tasks.zip(transposed(parts)).collect();
    tasks.into_par_iter().for_each(|(range, parts)| {
        let outs = parts.map(Fill::open);
        dispatch(Task { f, inputs: inputs.map(|it| &it[range.clone()]), outs });
    });
    outs.map(Fresh::finish)
}

/// The rows of a matrix that is given by its columns.
fn transposed<P, const M: usize>(columns: [Vec<P>; M]) -> impl Iterator<Item = [P; M]> {
    let mut columns = columns.map(Vec::into_iter);
    std::iter::from_fn(move || {
        columns.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>().try_into().ok()
    })
}

struct Task<'a, T, O, F, const N: usize, const M: usize> {
    f: F,
    inputs: [&'a [T]; N],
    outs: [&'a mut [O]; M],
}

impl<T: Element, O: Element, F: Pointwise<N, M>, const N: usize, const M: usize> WithSimd
    for Task<'_, T, O, F, N, M>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { f, inputs, mut outs } = self;
        let mut wide_inputs: [Vec<f32>; N] = std::array::from_fn(|_| T::scratch(BLOCK));
        let mut wide_outs: [Vec<f32>; M] = std::array::from_fn(|_| O::scratch(BLOCK));
        let len = inputs.first().map_or(0, |it| it.len());
        for first in (0..len).step_by(BLOCK) {
            let range = first..len.min(first + BLOCK);
            update(
                simd,
                views_mut(&mut outs, range.clone(), &mut wide_outs),
                views(inputs, range.clone(), &mut wide_inputs),
                #[inline(always)]
                |_, xs| f.apply(simd, xs),
            );
            commit(&mut outs, range, &wide_outs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::instruction_sets;
    use super::*;

    struct Apply<'a>(Activation, &'a [f32], &'a mut [f32]);

    impl pulp::WithSimd for Apply<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            update(
                simd,
                [self.2],
                [self.1],
                #[inline(always)]
                |_, x| self.0.apply(simd, x),
            );
        }
    }

    type Definition = fn(f64) -> f64;

    #[test]
    fn agree_with_double_precision_under_every_instruction_set() {
        let xs: Vec<f32> = (-9000..9000).map(|i| i as f32 / 1000.0).chain([-80.0, 80.0]).collect();
        let gelus: Vec<f64> =
            xs.iter().map(|&x| 0.5 * f64::from(x) * (1.0 + erf(f64::from(x) / 2f64.sqrt()))).collect();
        let definitions: [(Activation, f64, Definition); 3] = [
            (Activation::None, 0.0, |x| x),
            (Activation::Relu, 0.0, |x| x.max(0.0)),
            (Activation::Silu, 3e-7, |x| x / (1.0 + (-x).exp())),
        ];
        for arch in instruction_sets() {
            let apply = |activation, xs: &[f32]| {
                let mut ys = vec![0.0; xs.len()];
                arch.dispatch(Apply(activation, xs, &mut ys));
                ys
            };
            for (activation, tolerance, definition) in definitions {
                for (&x, y) in xs.iter().zip(apply(activation, &xs)) {
                    let (want, y) = (definition(f64::from(x)), f64::from(y));
                    assert!((y - want).abs() <= tolerance * want.abs(), "{activation:?} of {x}: {y:e}");
                }
            }
            for ((x, want), y) in xs.iter().zip(&gelus).zip(apply(Activation::Gelu, &xs)) {
                assert!((f64::from(y) - want).abs() < 2e-6, "GELU of {x}: {y:e}");
            }
            for activation in [Activation::None, Activation::Relu, Activation::Silu, Activation::Gelu] {
                assert!(apply(activation, &[f32::NAN])[0].is_nan(), "{activation:?}");
            }
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
