//! A product that joins the residual stream.
#![expect(unsafe_code, reason = "tasks write disjoint tiles of one result")]

use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::Simd;

use super::finish::{Destination, Finish, Sums, prefetch_row, tile_row, widened};
use super::tile::MAX_COLS;
use crate::cpu::element::Element;
use crate::cpu::gate_residual::Plan;
use crate::cpu::lanes::update;

/// Stores `x + gate * (product + bias)`, rounded once.
pub(crate) struct GatedSum<'a, T> {
    out: Destination<'a, T>,
    plan: &'a Plan,
    x: &'a [T],
    gate: &'a [T],
    bias: Option<&'a [f32]>,
}

impl<'a, T: Element> GatedSum<'a, T> {
    /// Into `out`; `plan` says how the rows of `gate` go with those of `x` and of the product.
    pub(crate) fn new(
        out: &'a mut [MaybeUninit<T>],
        plan: &'a Plan,
        (x, gate): (&'a [T], &'a [T]),
        bias: Option<&'a [f32]>,
    ) -> Self {
        Self { out: Destination::new(out, plan.width), plan, x, gate, bias }
    }

    /// Over `out`, likewise.
    pub(crate) fn over(
        out: &'a mut [T],
        plan: &'a Plan,
        (x, gate): (&'a [T], &'a [T]),
        bias: Option<&'a [f32]>,
    ) -> Self {
        Self { out: Destination::over(out, plan.width), plan, x, gate, bias }
    }
}

impl<T: Element> Finish for GatedSum<'_, T> {
    const WHOLE: bool = !T::HOLDS_SUMS;

    #[inline(always)]
    fn prefetch(&self, rows: Range<usize>, col: usize) {
        let Plan { width, columns, modulation, rows: ref all } = *self.plan;
        for row in rows.clone() {
            prefetch_row(self.x.as_ptr().wrapping_add(row * width + col));
            let gate = columns.of(self.gate, modulation.source(all, row), width);
            prefetch_row(gate.as_ptr().wrapping_add(col));
        }
        self.out.prefetch(rows, col);
    }

    #[inline(always)]
    fn tile<S: Simd>(&self, simd: S, sums: Sums<'_>) {
        let Sums { row, rows, col, cols, first, last, .. } = sums;
        let width = self.out.width();
        let bias = match self.bias {
            Some(bias) if last => widened(bias, col, cols),
            _ => [0.0; MAX_COLS],
        };
        for i in 0..rows {
            let mut values = tile_row(&sums, i);
            // SAFETY: tiles of different places do not overlap, and those of one place are handed over one
            // after the other; that of the first depths has been written here.
            unsafe {
                if !first {
                    self.out.add_to(row + i, col, cols, &mut values);
                }
                if last {
                    let source = self.plan.modulation.source(&self.plan.rows, row + i);
                    let gate = widened(self.plan.columns.of(self.gate, source, width), col, cols);
                    let x = widened(&self.x[(row + i) * width..][..width], col, cols);
                    update(
                        simd,
                        [&mut values],
                        [&gate, &x, &bias],
                        #[inline(always)]
                        |[y], [gate, x, bias]| [simd.mul_add_e_f32s(gate, simd.add_f32s(y, bias), x)],
                    );
                }
                self.out.write(row + i, col, cols, &values);
            }
        }
    }
}
