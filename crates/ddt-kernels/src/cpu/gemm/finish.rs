//! What becomes of a tile of the product.
#![expect(unsafe_code, reason = "tasks write disjoint tiles of one result")]

use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::Simd;

use super::tile::{MAX_COLS, prefetch};
use crate::cpu::element::Element;
use crate::cpu::scatter::Scatter;

/// Where a tile lies in the product, and its sums.
pub(crate) struct Sums<'a> {
    pub(crate) row: usize,
    pub(crate) rows: usize,
    pub(crate) col: usize,
    pub(crate) cols: usize,
    /// `rows` rows, `stride` elements apart.
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
    /// Whether these are sums over the first depths; if not, they add to what came before.
    pub(crate) first: bool,
    /// Whether no more depths follow.
    pub(crate) last: bool,
}

/// Takes the tiles of a product.
///
/// [`run`](super::run) hands every tile of every range of depths over once, those of one place in the order of
/// depth and in one task.
pub(crate) trait Finish: Sync {
    /// Whether tiles must be sums over all depths.
    const WHOLE: bool;

    /// Asks for the memory that a tile of these rows, from column `col` on, will need, before it is computed.
    fn prefetch(&self, rows: Range<usize>, col: usize);

    fn tile<S: Simd>(&self, simd: S, sums: Sums<'_>);
}

/// One row of a tile, the columns past its last zero or leftovers that nothing depends on.
pub(crate) type TileRow = [f32; MAX_COLS];

/// A result, row-major, that tiles are written to.
pub(crate) struct Destination<'a, T> {
    out: Scatter<'a, MaybeUninit<T>>,
    width: usize,
}

impl<'a, T: Element> Destination<'a, T> {
    /// Rows of `width`.
    pub(crate) fn new(out: &'a mut [MaybeUninit<T>], width: usize) -> Self {
        Self { out: Scatter::new(out), width }
    }

    /// Rows of `width`, over what is there.
    pub(crate) fn over(out: &'a mut [T], width: usize) -> Self {
        // SAFETY: the layouts are equal, and nothing uninitialised is written.
        Self::new(unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<T>]) }, width)
    }

    /// Elements in a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Asks for a tile's elements.
    #[inline(always)]
    pub(super) fn prefetch(&self, rows: Range<usize>, col: usize) {
        rows.for_each(|row| prefetch_row(self.out.at(row * self.width + col)));
    }

    /// Writes `cols` elements, rounded.
    ///
    /// # Safety
    ///
    /// No other task may touch these elements meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, row: usize, col: usize, cols: usize, values: &TileRow) {
        let mut rounded = [T::zero(); MAX_COLS];
        T::narrow(values, &mut rounded);
        // SAFETY: the caller's promise.
        let out = unsafe { self.out.range_mut(row * self.width + col, cols) };
        // Known lengths are a few instructions, others a call.
        match cols {
            32 => copy::<T, 32>(out, &rounded),
            16 => copy::<T, 16>(out, &rounded),
            8 => copy::<T, 8>(out, &rounded),
            _ => out.iter_mut().zip(rounded).for_each(|(out, x)| {
                out.write(x);
            }),
        }
    }

    /// Adds what is there to `values`.
    ///
    /// # Safety
    ///
    /// As [`write`](Self::write), and these elements must have been written.
    #[inline(always)]
    pub(super) unsafe fn add_to(&self, row: usize, col: usize, cols: usize, values: &mut TileRow) {
        // SAFETY: the caller's promise; the layouts are equal.
        let there: &[T] =
            unsafe { &*(std::ptr::from_ref(self.out.range_mut(row * self.width + col, cols)) as *const [T]) };
        let mut wide = [0.0; MAX_COLS];
        T::widen(there, &mut wide[..cols]);
        values.iter_mut().zip(wide).for_each(|(x, there)| *x += there);
    }
}

/// Asks for one row of the widest tile, which need not exist.
#[inline(always)]
pub(super) fn prefetch_row<T>(at: *const T) {
    prefetch(at);
    prefetch(at.wrapping_add(MAX_COLS - 1));
}

#[inline(always)]
fn copy<T: Copy, const N: usize>(out: &mut [MaybeUninit<T>], values: &[T; MAX_COLS]) {
    for i in 0..N {
        out[i].write(values[i]);
    }
}

/// `cols` elements of `row` from `col` on, in f32.
#[inline(always)]
pub(super) fn widened<T: Element>(row: &[T], col: usize, cols: usize) -> TileRow {
    let mut wide = [0.0; MAX_COLS];
    let row = &row[col..][..cols];
    match cols {
        32 => T::widen(&row[..32], &mut wide[..32]),
        16 => T::widen(&row[..16], &mut wide[..16]),
        _ => T::widen(row, &mut wide[..cols]),
    }
    wide
}

/// The rows of a tile.
#[inline(always)]
pub(super) fn tile_row(sums: &Sums<'_>, i: usize) -> TileRow {
    let mut row = [0.0; MAX_COLS];
    row[..sums.stride].copy_from_slice(&sums.values[i * sums.stride..][..sums.stride]);
    row
}

/// Stores the product row-major, plus `bias` if there is one, rounded once.
pub(crate) struct Store<'a, T> {
    out: Destination<'a, T>,
    bias: Option<&'a [f32]>,
    /// Whether to add to what is there.
    add: bool,
}

impl<'a, T: Element> Store<'a, T> {
    /// Into `out`, rows of `width`.
    pub(super) fn new(out: &'a mut [MaybeUninit<T>], width: usize, bias: Option<&'a [f32]>) -> Self {
        Self { out: Destination::new(out, width), bias, add: false }
    }

    /// Over `out`, rows of `width`.
    pub(crate) fn over(out: &'a mut [T], width: usize) -> Self {
        Self { out: Destination::over(out, width), bias: None, add: false }
    }

    /// Adds to `out`, rows of `width`.
    pub(super) fn adding(out: &'a mut [T], width: usize) -> Self {
        Self { add: true, ..Self::over(out, width) }
    }
}

impl<T: Element> Finish for Store<'_, T> {
    const WHOLE: bool = !T::HOLDS_SUMS;

    #[inline(always)]
    fn prefetch(&self, rows: Range<usize>, col: usize) {
        self.out.prefetch(rows, col);
    }

    #[inline(always)]
    fn tile<S: Simd>(&self, _: S, sums: Sums<'_>) {
        let Sums { row, rows, col, cols, first, .. } = sums;
        let bias = match self.bias {
            Some(bias) if first => widened(bias, col, cols),
            _ => [0.0; MAX_COLS],
        };
        for i in 0..rows {
            let mut values = tile_row(&sums, i);
            values.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            // SAFETY: tiles of different places do not overlap, and those of one place are handed over one
            // after the other; that of the first depths has been written here, or the caller's numbers are here.
            unsafe {
                if self.add || !first {
                    self.out.add_to(row + i, col, cols, &mut values);
                }
                self.out.write(row + i, col, cols, &values);
            }
        }
    }
}
