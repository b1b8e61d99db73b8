//! Forward and backward of [`crate::silu`], element by element.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::dispatch;
use super::element::Element;
use super::exp::{silu, silu_and_slope};
use super::lanes::update;

/// Elements of one task.
pub(super) const TASK: usize = 16 * 1024;
/// Elements that pass through scratch at a time, small enough to stay in the first-level cache.
pub(super) const BLOCK: usize = 1024;

pub(crate) fn forward<T: Element>(x: &[T]) -> Vec<T> {
    let mut out = vec![T::zero(); x.len()];
    out.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(out, x)| dispatch(Forward { x, out }));
    out
}

pub(crate) fn backward<T: Element>(x: &[T], grad: &[T]) -> Vec<T> {
    let mut out = vec![T::zero(); x.len()];
    out.par_chunks_mut(TASK)
        .zip(x.par_chunks(TASK).zip(grad.par_chunks(TASK)))
        .for_each(|(out, (x, grad))| dispatch(Backward { x, grad, out }));
    out
}

struct Forward<'a, T> {
    x: &'a [T],
    out: &'a mut [T],
}

impl<T: Element> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (mut x_block, mut out_block) = (T::scratch(BLOCK), T::scratch(BLOCK));
        for (x, out) in self.x.chunks(BLOCK).zip(self.out.chunks_mut(BLOCK)) {
            update(
                simd,
                [T::view_mut(out, &mut out_block)],
                [T::view(x, &mut x_block)],
                #[inline(always)]
                |_, [x]| [silu(simd, x)],
            );
            T::commit(out, &out_block);
        }
    }
}

struct Backward<'a, T> {
    x: &'a [T],
    grad: &'a [T],
    out: &'a mut [T],
}

impl<T: Element> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (mut x_block, mut grad_block, mut out_block) =
            (T::scratch(BLOCK), T::scratch(BLOCK), T::scratch(BLOCK));
        let ins = self.x.chunks(BLOCK).zip(self.grad.chunks(BLOCK));
        for ((x, grad), out) in ins.zip(self.out.chunks_mut(BLOCK)) {
            update(
                simd,
                [T::view_mut(out, &mut out_block)],
                [T::view(x, &mut x_block), T::view(grad, &mut grad_block)],
                #[inline(always)]
                |_, [x, grad]| [simd.mul_f32s(grad, silu_and_slope(simd, x).1)],
            );
            T::commit(out, &out_block);
        }
    }
}
