//! Two products with one left factor, and the gate between them.
#![expect(unsafe_code, reason = "tasks write disjoint tiles of one result")]

use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::Simd;

use super::finish::{Destination, Finish, Sums};
use super::tile::MAX_COLS;
use crate::cpu::element::Element;
use crate::cpu::exp::silu;
use crate::cpu::lanes::update;

/// Stores `silu(a) * b`, rounded once, of a product by [`Packed::pair`](super::Packed::pair): each tile has a
/// lane group of columns of `a` and the same of `b`.
pub(crate) struct SwiGlu<'a, T> {
    out: Destination<'a, T>,
}

impl<'a, T: Element> SwiGlu<'a, T> {
    /// Into `out`, rows of `width`: half the product's.
    pub(crate) fn new(out: &'a mut [MaybeUninit<T>], width: usize) -> Self {
        Self { out: Destination::new(out, width) }
    }

    /// Over `out`, rows of `width`.
    pub(crate) fn over(out: &'a mut [T], width: usize) -> Self {
        Self { out: Destination::over(out, width) }
    }
}

impl<T: Element> Finish for SwiGlu<'_, T> {
    const WHOLE: bool = true;

    #[inline(always)]
    fn prefetch(&self, rows: Range<usize>, col: usize) {
        self.out.prefetch(rows, col / 2);
    }

    #[inline(always)]
    fn tile<S: Simd>(&self, simd: S, sums: Sums<'_>) {
        let Sums { row, rows, col, values, stride, .. } = sums;
        let (lanes, col) = (stride / 2, col / 2);
        let cols = lanes.min(self.out.width() - col);
        for (i, values) in values.chunks_exact(stride).take(rows).enumerate() {
            let (a, b) = values.split_at(lanes);
            let mut gated = [0.0; MAX_COLS];
            update(
                simd,
                [&mut gated[..lanes]],
                [a, b],
                #[inline(always)]
                |_, [a, b]| [simd.mul_f32s(silu(simd, a), b)],
            );
            // SAFETY: tiles of different places do not overlap.
            unsafe { self.out.write(row + i, col, cols, &gated) };
        }
    }
}
