//! The operands of a GEMM: A in memory or gathered row by row, and B packed in panels.

use std::ops::Range;
use std::sync::Arc;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::tile::columns;
use crate::cpu::buffers::Scratch;
use crate::cpu::fma::Operand;
use crate::instruction_set::arch;

/// A matrix in memory: element (i, j) is `data[i * row + j * col]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// The (rows, cols) matrix that is stored row by row.
    pub(crate) fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= rows * cols);
        Self { data, rows, cols, row: cols, col: 1 }
    }

    /// The (rows, cols) matrix that is stored column by column: the transpose of the (cols, rows) matrix `data`.
    pub(crate) fn transposed(data: &'a [T], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= rows * cols);
        Self { data, rows, cols, row: 1, col: rows }
    }
}

/// Rows of A that exist only when a task copies them, such as patches of an image.
pub(crate) trait Gather<T>: Sync {
    /// Writes the elements `depths` of row `row` to `out`, which has their number.
    fn gather(&self, row: usize, depths: Range<usize>, out: &mut [T]);
}

/// The left operand, (rows, depth): activations.
#[derive(Clone, Copy)]
pub(crate) enum ASource<'a, T> {
    /// Read in place where the layout allows.
    Matrix(Matrix<'a, T>),
    /// Gathered by each task for the rows that it multiplies.
    Gathered { source: &'a dyn Gather<T>, rows: usize, depth: usize },
}

impl<'a, T: Operand> ASource<'a, T> {
    /// The (rows, depth) matrix that is stored row by row.
    pub(crate) fn rows(data: &'a [T], rows: usize, depth: usize) -> Self {
        Self::Matrix(Matrix::new(data, rows, depth))
    }

    /// Rows and depth.
    pub(super) fn dims(&self) -> (usize, usize) {
        match *self {
            Self::Matrix(Matrix { rows, cols, .. }) => (rows, cols),
            Self::Gathered { rows, depth, .. } => (rows, depth),
        }
    }

    /// The matrix, where a GEMM may read it in place.
    pub(super) fn in_place(&self) -> Option<Matrix<'a, T>> {
        match *self {
            Self::Matrix(it) => Some(it).filter(|it| {
                let whole_steps = T::DEPTHS == 1 || (it.col == 1 && it.cols.is_multiple_of(T::DEPTHS));
                whole_steps && !it.conflicts()
            }),
            Self::Gathered { .. } => None,
        }
    }

    /// The elements `depths` of `rows`, padded with zeros to whole steps, and the distance of rows there.
    pub(super) fn copied(&self, rows: Range<usize>, depths: Range<usize>) -> (Scratch<T>, usize) {
        let steps = depths.len().next_multiple_of(T::DEPTHS);
        let row = steps.next_multiple_of(PADDING) + PADDING;
        let mut copy = Scratch::take(rows.len() * row);
        for (out, i) in copy.chunks_exact_mut(row).zip(rows) {
            let (out, padding) = out[..steps].split_at_mut(depths.len());
            match self {
                Self::Matrix(it) if it.col == 1 => {
                    out.copy_from_slice(&it.data[i * it.row..][depths.clone()])
                }
                Self::Matrix(it) => {
                    out.iter_mut()
                        .zip(depths.clone())
                        .for_each(|(out, k)| *out = it.data[i * it.row + k * it.col]);
                }
                Self::Gathered { source, .. } => source.gather(i, depths.clone(), out),
            }
            padding.fill(T::default());
        }
        (copy, row)
    }
}

/// Elements between the rows of a copy: a cache line or half of one.
const PADDING: usize = 16;

impl<T> Matrix<'_, T> {
    /// Whether adjacent rows, whole pages apart, share the same few lines of the first-level cache, which
    /// holds eight of a kind.
    fn conflicts(&self) -> bool {
        const PAGE: usize = 4096;
        self.col == 1 && self.rows > 8 && (self.row * size_of::<T>()).is_multiple_of(PAGE)
    }
}

/// The right operand, (depth, width): weights, packed in panels as wide as two lane groups.
///
/// A panel holds, for each step of depth, the `DEPTHS` elements of one column after the other. Past the last row
/// and column there are zeros. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct PackedB<T: Operand> {
    data: Arc<Scratch<T>>,
    /// The instruction set that multiplies by it, which decides the width of panels.
    pub(super) arch: Arch,
    pub(super) columns: usize,
    pub(super) depth: usize,
    pub(super) width: usize,
}

struct Columns;

impl WithSimd for Columns {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        columns::<S>()
    }
}

impl<T: Operand> PackedB<T> {
    /// For one GEMM: the memory is pooled.
    pub(crate) fn temporary(b: Matrix<'_, T>) -> Self {
        Self::with(arch(), b, Scratch::take)
    }

    /// For many GEMMs.
    pub(crate) fn new(b: Matrix<'_, T>) -> Self {
        Self::with(arch(), b, Scratch::own)
    }

    pub(crate) fn with(arch: Arch, b: Matrix<'_, T>, memory: impl FnOnce(usize) -> Scratch<T>) -> Self {
        Self::fill(arch, b.rows, b.cols, memory, |columns, panel, out| {
            if (panel + 1) * columns > b.cols || !b.rows.is_multiple_of(T::DEPTHS) {
                out.fill(T::default());
            }
            fill_panel(b, panel * columns, columns, out, columns);
        })
    }

    /// Two operands of one size for many GEMMs: the first lane group of a panel holds columns of `first`, the
    /// second the same columns of `second`.
    pub(crate) fn pair(first: Matrix<'_, T>, second: Matrix<'_, T>) -> Self {
        assert_eq!((first.rows, first.cols), (second.rows, second.cols));
        let arch = arch();
        let lanes = arch.dispatch(Columns) / 2;
        let width = first.cols.div_ceil(lanes) * 2 * lanes;
        Self::fill(arch, first.rows, width, Scratch::own, |columns, panel, out| {
            fill_panel(first, panel * lanes, lanes, out, columns);
            fill_panel(second, panel * lanes, lanes, &mut out[lanes * T::DEPTHS..], columns);
        })
    }

    fn fill(
        arch: Arch,
        depth: usize,
        width: usize,
        memory: impl FnOnce(usize) -> Scratch<T>,
        fill: impl Fn(usize, usize, &mut [T]) + Sync,
    ) -> Self {
        let columns = arch.dispatch(Columns);
        let panel = depth.next_multiple_of(T::DEPTHS) * columns;
        let mut data = memory(width.div_ceil(columns) * panel);
        if panel > 0 {
            data.par_chunks_exact_mut(panel).enumerate().for_each(|(i, out)| fill(columns, i, out));
        }
        Self { data: Arc::new(data), arch, columns, depth, width }
    }

    /// The first `width` columns of each operand of a [`pair`](Self::pair), each stored column by column.
    pub(crate) fn unpaired(&self, width: usize) -> [Vec<T>; 2] {
        let lanes = self.columns / 2;
        let column = |j: usize| self.column(j).collect::<Vec<_>>();
        let of = |first: usize| {
            (0..width).flat_map(|j| column(j / lanes * 2 * lanes + first + j % lanes)).collect()
        };
        [of(0), of(lanes)]
    }

    /// The matrix, stored column by column.
    pub(crate) fn unpacked(&self) -> Vec<T> {
        (0..self.width).flat_map(|j| self.column(j)).collect()
    }

    fn column(&self, j: usize) -> impl Iterator<Item = T> {
        let panel = self.panel(j / self.columns);
        let at = move |k: usize| {
            let (step, part) = (k / T::DEPTHS, k % T::DEPTHS);
            panel[(step * self.columns + j % self.columns) * T::DEPTHS + part]
        };
        (0..self.depth).map(at)
    }

    pub(super) fn panels(&self) -> usize {
        self.width.div_ceil(self.columns)
    }

    /// The elements of a panel.
    pub(super) fn panel(&self, panel: usize) -> &[T] {
        let len = self.depth.next_multiple_of(T::DEPTHS) * self.columns;
        &self.data[panel * len..][..len]
    }
}

/// Depths that are transposed together: a cache line of every column.
const BLOCK: usize = 16;

/// Writes columns `first..first + count` of `b`, as far as they exist, to the first columns of a panel of `columns`.
fn fill_panel<T: Operand>(b: Matrix<'_, T>, first: usize, count: usize, out: &mut [T], columns: usize) {
    let Matrix { data, rows: depth, cols: width, row, col } = b;
    let count = count.min(width - first);
    if col == 1 && T::DEPTHS == 1 {
        for (k, out) in out.chunks_mut(columns).take(depth).enumerate() {
            out[..count].copy_from_slice(&data[k * row + first..][..count]);
        }
        return;
    }
    for begin in (0..depth).step_by(BLOCK) {
        let block = BLOCK.min(depth - begin);
        for j in 0..count {
            let column = &data[(first + j) * col + begin * row..];
            for k in 0..block {
                let (step, part) = ((begin + k) / T::DEPTHS, (begin + k) % T::DEPTHS);
                out[(step * columns + j) * T::DEPTHS + part] = column[k * row];
            }
        }
    }
}
