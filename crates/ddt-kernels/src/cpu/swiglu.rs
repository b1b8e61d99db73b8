//! Forward and backward of [`crate::swiglu`], element by element.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::dispatch;
use super::element::Element;
use super::exp::{silu, silu_and_slope};
use super::fresh::{Fill, Fresh};
use super::lanes::update;
use super::silu::{BLOCK, TASK};

pub(crate) fn forward<T: Element>(a: &[T], b: &[T]) -> Vec<T> {
    let mut out = Fresh::new(a.len());
    let outs: Vec<_> = out.parts(parts(a.len())).collect();
    outs.into_par_iter().zip(a.par_chunks(TASK).zip(b.par_chunks(TASK))).for_each(|(out, (a, b))| {
        let out = out.open();
        dispatch(Forward { a, b, out });
    });
    out.finish()
}

/// Gradients of `a` and `b`.
pub(crate) fn backward<T: Element>(a: &[T], b: &[T], grad: &[T]) -> (Vec<T>, Vec<T>) {
    let mut grad_a = Fresh::new(a.len());
    let mut grad_b = Fresh::new(a.len());
    let outs: Vec<_> = grad_a.parts(parts(a.len())).zip(grad_b.parts(parts(a.len()))).collect();
    let ins = a.par_chunks(TASK).zip(b.par_chunks(TASK)).zip(grad.par_chunks(TASK));
    outs.into_par_iter().zip(ins).for_each(|((grad_a, grad_b), ((a, b), grad))| {
        let (grad_a, grad_b) = (grad_a.open(), grad_b.open());
        dispatch(Backward { a, b, grad, grad_a, grad_b });
    });
    (grad_a.finish(), grad_b.finish())
}

/// Elements of every task.
fn parts(len: usize) -> impl Iterator<Item = usize> {
    (0..len.div_ceil(TASK)).map(move |i| TASK.min(len - i * TASK))
}

struct Forward<'a, T> {
    a: &'a [T],
    b: &'a [T],
    out: &'a mut [T],
}

impl<T: Element> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (mut a_block, mut b_block, mut out_block) =
            (T::scratch(BLOCK), T::scratch(BLOCK), T::scratch(BLOCK));
        let ins = self.a.chunks(BLOCK).zip(self.b.chunks(BLOCK));
        for ((a, b), out) in ins.zip(self.out.chunks_mut(BLOCK)) {
            update(
                simd,
                [T::view_mut(out, &mut out_block)],
                [T::view(a, &mut a_block), T::view(b, &mut b_block)],
                #[inline(always)]
                |_, [a, b]| [simd.mul_f32s(silu(simd, a), b)],
            );
            T::commit(out, &out_block);
        }
    }
}

struct Backward<'a, T> {
    a: &'a [T],
    b: &'a [T],
    grad: &'a [T],
    grad_a: &'a mut [T],
    grad_b: &'a mut [T],
}

impl<T: Element> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (mut a_block, mut b_block, mut grad_block) =
            (T::scratch(BLOCK), T::scratch(BLOCK), T::scratch(BLOCK));
        let (mut grad_a_block, mut grad_b_block) = (T::scratch(BLOCK), T::scratch(BLOCK));
        let ins = self.a.chunks(BLOCK).zip(self.b.chunks(BLOCK)).zip(self.grad.chunks(BLOCK));
        let outs = self.grad_a.chunks_mut(BLOCK).zip(self.grad_b.chunks_mut(BLOCK));
        for (((a, b), grad), (grad_a, grad_b)) in ins.zip(outs) {
            update(
                simd,
                [T::view_mut(grad_a, &mut grad_a_block), T::view_mut(grad_b, &mut grad_b_block)],
                [T::view(a, &mut a_block), T::view(b, &mut b_block), T::view(grad, &mut grad_block)],
                #[inline(always)]
                |_, [a, b, grad]| {
                    let (value, slope) = silu_and_slope(simd, a);
                    [simd.mul_f32s(simd.mul_f32s(grad, b), slope), simd.mul_f32s(grad, value)]
                },
            );
            T::commit(grad_a, &grad_a_block);
            T::commit(grad_b, &grad_b_block);
        }
    }
}
