//! Functions of single elements, over whole tensors or at the end of a GEMM.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::buffers::{Fill, Fresh};
use super::element::{Element, commit, views, views_mut};
use super::exp::{silu, silu_and_slope};
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

/// From `x` and the gradient of `silu(x)` to the gradient of `x`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SiluGradient;

impl Pointwise<2, 1> for SiluGradient {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, [x, grad]: [S::f32s; 2]) -> [S::f32s; 1] {
        [simd.mul_f32s(grad, silu_and_slope(simd, x).1)]
    }
}

/// `f` of every element of `inputs`, which have one length.
pub(crate) fn map<T: Element, F: Pointwise<N, M>, const N: usize, const M: usize>(
    f: F,
    inputs: [&[T]; N],
) -> [Vec<T>; M] {
    let len = inputs.first().map_or(0, |it| it.len());
    let mut outs: [Fresh<T>; M] = std::array::from_fn(|_| Fresh::new(len));
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

struct Task<'a, T, F, const N: usize, const M: usize> {
    f: F,
    inputs: [&'a [T]; N],
    outs: [&'a mut [T]; M],
}

impl<T: Element, F: Pointwise<N, M>, const N: usize, const M: usize> WithSimd for Task<'_, T, F, N, M> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { f, inputs, mut outs } = self;
        let mut wide_inputs: [Vec<f32>; N] = std::array::from_fn(|_| T::scratch(BLOCK));
        let mut wide_outs: [Vec<f32>; M] = std::array::from_fn(|_| T::scratch(BLOCK));
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
