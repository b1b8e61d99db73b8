//! The end of a GEMM: an epilogue changes the sums, which are then rounded and written.
#![expect(unsafe_code, reason = "tasks write disjoint tiles of one result")]

use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::Simd;

use crate::cpu::buffers::Scatter;
use crate::cpu::element::Element;
use crate::cpu::lanes::update;
use crate::cpu::microkernel::{MAX_COLS, Tile};
use crate::cpu::pointwise::{Identity, Pointwise};
use crate::cpu::prefetch::prefetch;

/// One row of a tile. Columns past the tile's last are zero or leftovers that nothing depends on.
pub(crate) type TileRow = [f32; MAX_COLS];

/// The place of a tile in C.
pub(crate) struct Place {
    pub(crate) rows: Range<usize>,
    pub(crate) col: usize,
    pub(crate) cols: usize,
}

/// Changes to the sums of a GEMM before they are rounded and written.
pub(crate) trait Epilogue: Sync {
    /// Whether B is a [pair](super::PackedB::pair): each row of a tile then has a lane group of columns of the first
    /// operand and the same columns of the second, and [`finish`](Self::finish) leaves one lane group.
    const PAIRED: bool = false;

    /// Prefetches what [`finish`](Self::finish) reads for a tile, before the tile is computed.
    #[inline(always)]
    fn prefetch(&self, _place: &Place) {}

    /// Adds to the sums of row `row` over the first depths: where sums rest in C between ranges of depth, that is
    /// before all of them are added.
    #[inline(always)]
    fn start(&self, _col: usize, _cols: usize, _sums: &mut TileRow) {}

    /// Replaces the sums over all depths, those of C's elements (`row`, `col`) to (`row`, `col + cols`).
    fn finish<S: Simd>(&self, simd: S, row: usize, col: usize, cols: usize, sums: &mut TileRow);
}

/// `activation(sums + bias + residual)`: the end of a linear layer or a convolution.
pub(crate) struct BiasActivation<'a, T, F = Identity> {
    /// Per column.
    pub(crate) bias: Option<&'a [f32]>,
    /// As large as C.
    pub(crate) residual: Option<&'a [T]>,
    pub(crate) activation: F,
    /// Columns of C.
    pub(crate) width: usize,
}

impl<'a, T> BiasActivation<'a, T> {
    /// `sums + bias`, in `width` columns.
    pub(crate) fn bias(bias: Option<&'a [f32]>, width: usize) -> Self {
        Self { bias, residual: None, activation: Identity, width }
    }
}

impl<T: Element, F: Pointwise<1, 1>> Epilogue for BiasActivation<'_, T, F> {
    #[inline(always)]
    fn prefetch(&self, place: &Place) {
        if let Some(residual) = self.residual {
            place.rows.clone().for_each(|row| prefetch_row(residual, row * self.width + place.col));
        }
    }

    #[inline(always)]
    fn start(&self, col: usize, cols: usize, sums: &mut TileRow) {
        if let Some(bias) = self.bias {
            let bias = widened(bias, col, cols);
            sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, row: usize, col: usize, cols: usize, sums: &mut TileRow) {
        if let Some(residual) = self.residual {
            let residual = widened(residual, row * self.width + col, cols);
            sums.iter_mut().zip(residual).for_each(|(sum, x)| *sum += x);
        }
        if !F::IDENTITY {
            update(
                simd,
                [sums],
                [],
                #[inline(always)]
                |[x], []| self.activation.apply(simd, [x]),
            );
        }
    }
}

/// `cols` elements of `values` from `at` on, in f32.
#[inline(always)]
pub(crate) fn widened<T: Element>(values: &[T], at: usize, cols: usize) -> TileRow {
    let mut wide = [0.0; MAX_COLS];
    let values = &values[at..][..cols];
    // Known lengths are a few instructions, others a call.
    match cols {
        32 => T::widen(&values[..32], &mut wide[..32]),
        16 => T::widen(&values[..16], &mut wide[..16]),
        _ => T::widen(values, &mut wide[..cols]),
    }
    wide
}

/// Prefetches one row of the widest tile from `values[at]` on, which need not exist.
#[inline(always)]
pub(crate) fn prefetch_row<T>(values: &[T], at: usize) {
    prefetch_at(values.as_ptr().wrapping_add(at));
}

#[inline(always)]
fn prefetch_at<T>(at: *const T) {
    prefetch(at);
    prefetch(at.wrapping_add(MAX_COLS - 1));
}

/// Where C's rows are written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RowOrder {
    /// One after the other.
    Same,
    /// C's rows are the pixels of images with `columns` columns, and are written as one pixel of each 2 x 2 of an
    /// image of twice the size: that in row `phase.0` and column `phase.1`.
    Upsampled { columns: usize, phase: (usize, usize) },
}

/// C, stored row by row.
pub(crate) struct Destination<'a, T> {
    out: Scatter<'a, MaybeUninit<T>>,
    width: usize,
    order: RowOrder,
    /// Whether to add to the elements that are there.
    adds: bool,
}

impl<'a, T: Element> Destination<'a, T> {
    /// Rows of `width`, uninitialised.
    pub(crate) fn new(out: &'a mut [MaybeUninit<T>], width: usize) -> Self {
        Self { out: Scatter::new(out), width, order: RowOrder::Same, adds: false }
    }

    /// Rows of `width` in another order, uninitialised.
    pub(crate) fn ordered(out: &'a mut [MaybeUninit<T>], width: usize, order: RowOrder) -> Self {
        Self { order, ..Self::new(out, width) }
    }

    /// Rows of `width`, overwritten.
    pub(crate) fn over(out: &'a mut [T], width: usize) -> Self {
        // SAFETY: the layouts are equal, and nothing uninitialised is written.
        Self::new(unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<T>]) }, width)
    }

    /// Rows of `width`, which the result is added to.
    pub(crate) fn adding(out: &'a mut [T], width: usize) -> Self {
        Self { adds: true, ..Self::over(out, width) }
    }

    /// Columns of C.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Whether C has `rows` rows.
    pub(super) fn has_rows(&self, rows: usize) -> bool {
        let each = match self.order {
            RowOrder::Same => 1,
            RowOrder::Upsampled { .. } => 4,
        };
        self.out.len() == each * rows * self.width
    }

    /// The first element of column `col` of row `row`.
    #[inline(always)]
    fn at(&self, row: usize, col: usize) -> usize {
        let row = match self.order {
            RowOrder::Same => row,
            RowOrder::Upsampled { columns, phase } => {
                let (line, column) = (row / columns, row % columns);
                (2 * line + phase.0) * 2 * columns + 2 * column + phase.1
            }
        };
        row * self.width + col
    }

    /// Prefetches a tile's elements.
    #[inline(always)]
    pub(super) fn prefetch(&self, place: &Place) {
        place.rows.clone().for_each(|row| prefetch_at(self.out.at(self.at(row, place.col))));
    }

    /// Finishes and writes a tile, `stride` sums a row: those over the `first` range of depths, the `last` or both.
    ///
    /// # Safety
    /// No other task may touch the tile's place meanwhile. Unless it is the first, the first must have been written.
    #[inline(always)]
    pub(super) unsafe fn write_tile<S: Simd, E: Epilogue>(
        &self,
        simd: S,
        place: &Place,
        sums: &Tile,
        range: DepthRange,
        epilogue: &E,
    ) {
        let (col, cols, stride) = (place.col, place.cols, 2 * S::F32_LANES);
        for (sums, row) in sums.chunks_exact(stride).zip(place.rows.clone()) {
            let mut values = [0.0; MAX_COLS];
            values[..stride].copy_from_slice(sums);
            if range.first {
                epilogue.start(col, cols, &mut values);
            }
            // SAFETY: the caller's promise; with `adds`, C was initialised by its owner.
            unsafe {
                if self.adds || !range.first {
                    self.add_to(row, col, cols, &mut values);
                }
                if range.last {
                    epilogue.finish(simd, row, col, cols, &mut values);
                }
                self.write(row, col, cols, &values);
            }
        }
    }

    /// Writes `cols` elements, rounded.
    ///
    /// # Safety
    /// No other task may touch these elements meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, row: usize, col: usize, cols: usize, values: &TileRow) {
        let mut rounded = [T::zero(); MAX_COLS];
        T::narrow(values, &mut rounded);
        // SAFETY: the caller's promise.
        let out = unsafe { self.out.range_mut(self.at(row, col), cols) };
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

    /// Adds the elements of C to `values`.
    ///
    /// # Safety
    /// As [`write`](Self::write), and these elements must have been written.
    #[inline(always)]
    unsafe fn add_to(&self, row: usize, col: usize, cols: usize, values: &mut TileRow) {
        // SAFETY: the caller's promise; the layouts are equal.
        let there: &[T] =
            unsafe { &*(std::ptr::from_ref(self.out.range_mut(self.at(row, col), cols)) as *const [T]) };
        let mut wide = [0.0; MAX_COLS];
        T::widen(there, &mut wide[..cols]);
        values.iter_mut().zip(wide).for_each(|(x, there)| *x += there);
    }
}

/// Which of the ranges of depth a tile's sums are over.
#[derive(Clone, Copy)]
pub(super) struct DepthRange {
    pub(super) first: bool,
    pub(super) last: bool,
}

#[inline(always)]
fn copy<T: Copy, const N: usize>(out: &mut [MaybeUninit<T>], values: &[T; MAX_COLS]) {
    for i in 0..N {
        out[i].write(values[i]);
    }
}
