//! The operands of a GEMM: A in memory or gathered row by row, and B packed in panels.

use std::ops::Range;
use std::sync::Arc;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::buffers::Scratch;
use crate::cpu::element::Element;
use crate::cpu::microkernel::{Operand, Strip, columns};
use crate::cpu::prefetch::prefetch;
use crate::instruction_set::{Instructions, instructions};

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
pub(crate) enum ASource<'a, T: Operand> {
    /// Read in place where the layout allows.
    Matrix(Matrix<'a, T>),
    /// Gathered by each task for the rows that it multiplies.
    Gathered { source: &'a dyn Gather<T>, rows: usize, depth: usize },
    /// The transpose of a packed matrix, [in wide panels](PackedB::wide); only inside a GEMM.
    Transposed(&'a PackedB<T>),
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
            Self::Transposed(it) => (it.width, it.depth),
        }
    }

    /// The rows from `row` on of a packed matrix, from depth `depth` on, and the row after its panel.
    #[inline(always)]
    pub(super) fn packed_strip(&self, row: usize, depth: usize) -> (Strip<T>, usize) {
        let Self::Transposed(it) = self else { unreachable!("only packed matrices are read by panels") };
        let (panel, column) = (row / it.columns, row % it.columns);
        let at = it.panel(panel).as_ptr().wrapping_add(depth * it.columns + column * T::DEPTHS);
        (Strip { at, row: T::DEPTHS, step: it.columns * T::DEPTHS }, (panel + 1) * it.columns)
    }

    /// The matrix, where a GEMM may read it in place; with `aligned`, only if its rows start with cache lines.
    pub(super) fn in_place(&self, aligned: bool) -> Option<Matrix<'a, T>> {
        match *self {
            Self::Matrix(it) => Some(it).filter(|it| {
                let whole_steps = T::DEPTHS == 1 || (it.col == 1 && it.cols.is_multiple_of(T::DEPTHS));
                whole_steps && !it.conflicts() && (!aligned || it.is_aligned())
            }),
            Self::Gathered { .. } | Self::Transposed(_) => None,
        }
    }

    /// The elements `depths` of `rows`, padded with zeros to whole steps, and the distance of rows there.
    pub(super) fn copied(&self, rows: Range<usize>, depths: Range<usize>) -> (Scratch<T>, usize) {
        let steps = depths.len().next_multiple_of(T::DEPTHS);
        let line = PADDING / size_of::<T>();
        let row = steps.next_multiple_of(line) + line;
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
                Self::Transposed(_) => unreachable!("a packed matrix is read in place"),
            }
            padding.fill(T::default());
        }
        (copy, row)
    }
}

/// Side of the squares in which a matrix is transposed: a cache line of bf16.
const SQUARE: usize = 32;
/// Rows of a transposed matrix that one task writes: several cache lines of each row that it reads.
const TRANSPOSED_ROWS: usize = 4 * SQUARE;

impl<T: Operand> Matrix<'_, T> {
    /// The transpose.
    pub(super) fn t(self) -> Self {
        let Self { data, rows, cols, row, col } = self;
        Self { data, rows: cols, cols: rows, row: col, col: row }
    }

    /// A copy, stored row by row, of a matrix that is stored column by column; each row starts with a cache line. And
    /// the distance of rows there.
    pub(super) fn by_rows(&self) -> (Scratch<T>, usize) {
        let Self { data, rows, cols: depth, col, .. } = *self;
        let row = depth.next_multiple_of(SQUARE) + SQUARE;
        let mut out = Scratch::take(rows * row);
        out.par_chunks_mut(TRANSPOSED_ROWS * row).enumerate().for_each(|(task, out)| {
            let first = task * TRANSPOSED_ROWS;
            let mut square = [[T::default(); SQUARE]; SQUARE];
            for begin in (0..depth).step_by(SQUARE) {
                for k in begin + SQUARE..depth.min(begin + 2 * SQUARE) {
                    let columns = (0..TRANSPOSED_ROWS).step_by(SQUARE);
                    columns.for_each(|i| prefetch(data.as_ptr().wrapping_add(k * col + first + i)));
                }
                for (i, out) in out.chunks_mut(SQUARE * row).enumerate() {
                    for (k, line) in (begin..depth).zip(&mut square) {
                        let from = &data[k * col + first + i * SQUARE..];
                        match from.first_chunk() {
                            Some(whole) => *line = *whole,
                            None => line[..from.len()].copy_from_slice(from),
                        }
                    }
                    for (i, out) in out.chunks_exact_mut(row).enumerate() {
                        let column = std::array::from_fn(|k| square[k][i % SQUARE]);
                        if let Some(out) = out[begin..].first_chunk_mut::<SQUARE>() {
                            *out = column;
                        }
                    }
                }
            }
        });
        (out, row)
    }
}

/// Bytes between the rows of a copy, whose lengths are multiples of it too: a cache line.
const PADDING: usize = 64;

impl<T> Matrix<'_, T> {
    /// Whether every row starts with a cache line.
    fn is_aligned(&self) -> bool {
        self.data.as_ptr().align_offset(64) == 0 && (self.row * size_of::<T>()).is_multiple_of(64)
    }

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
    pub(super) instructions: Instructions,
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

/// Fills a panel with code for the instruction set.
struct Fill<'a, T, F> {
    fill: &'a F,
    panel: usize,
    out: &'a mut [T],
}

impl<T, F: Fn(usize, &mut [T])> WithSimd for Fill<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        (self.fill)(self.panel, self.out);
    }
}

/// Columns of a wide panel: whole tiles of 14 rows, whole blocks, and an odd number of cache lines, so that steps of
/// depth do not evict each other from the first-level cache.
const WIDE: usize = 7 * BLOCK;

impl<T: Operand> PackedB<T> {
    /// For one GEMM: the memory is pooled.
    pub(crate) fn temporary(b: Matrix<'_, T>) -> Self {
        Self::with(instructions(), b, Scratch::take)
    }

    /// [`temporary`](Self::temporary), rounded to this type.
    pub(crate) fn rounded(b: Matrix<'_, f32>) -> Self
    where
        T: Element,
    {
        Self::filled(instructions(), instructions().dispatch(Columns), b, Scratch::take, T::round)
    }

    /// For a GEMM by the [transpose](ASource::Transposed): panels of `WIDE` columns. The memory is pooled.
    pub(crate) fn wide(b: Matrix<'_, T>) -> Self {
        Self::filled(instructions(), WIDE, b, Scratch::take, |x| x)
    }

    /// For many GEMMs.
    pub(crate) fn new(b: Matrix<'_, T>) -> Self {
        Self::with(instructions(), b, Scratch::own)
    }

    pub(crate) fn with(
        instructions: Instructions,
        b: Matrix<'_, T>,
        memory: impl FnOnce(usize) -> Scratch<T>,
    ) -> Self {
        Self::filled(instructions, instructions.dispatch(Columns), b, memory, |x| x)
    }

    fn filled<S: Copy + Sync>(
        instructions: Instructions,
        columns: usize,
        b: Matrix<'_, S>,
        memory: impl FnOnce(usize) -> Scratch<T>,
        convert: impl Fn(S) -> T + Copy + Sync,
    ) -> Self {
        Self::fill(
            instructions,
            columns,
            (b.rows, b.cols),
            memory,
            #[inline(always)]
            |panel, out| {
                if (panel + 1) * columns > b.cols || !b.rows.is_multiple_of(T::DEPTHS) {
                    out.fill(T::default());
                }
                fill_panel(b, panel * columns, columns, out, columns, convert);
            },
        )
    }

    /// Two operands of one size for many GEMMs: the first lane group of a panel holds columns of `first`, the
    /// second the same columns of `second`.
    pub(crate) fn pair(first: Matrix<'_, T>, second: Matrix<'_, T>) -> Self {
        assert_eq!((first.rows, first.cols), (second.rows, second.cols));
        let instructions = instructions();
        let columns = instructions.dispatch(Columns);
        let lanes = columns / 2;
        let width = first.cols.div_ceil(lanes) * columns;
        Self::fill(instructions, columns, (first.rows, width), Scratch::own, |panel, out| {
            fill_panel(first, panel * lanes, lanes, out, columns, |x| x);
            fill_panel(second, panel * lanes, lanes, &mut out[lanes * T::DEPTHS..], columns, |x| x);
        })
    }

    fn fill(
        instructions: Instructions,
        columns: usize,
        (depth, width): (usize, usize),
        memory: impl FnOnce(usize) -> Scratch<T>,
        fill: impl Fn(usize, &mut [T]) + Sync,
    ) -> Self {
        let panel = depth.next_multiple_of(T::DEPTHS) * columns;
        let mut data = memory(width.div_ceil(columns) * panel);
        if panel > 0 {
            let fill = &fill;
            let panels = data.par_chunks_exact_mut(panel).enumerate();
            panels.for_each(|(panel, out)| instructions.dispatch(Fill { fill, panel, out }));
        }
        Self { data: Arc::new(data), instructions, columns, depth, width }
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
#[inline(always)]
fn fill_panel<S: Copy, T: Operand>(
    b: Matrix<'_, S>,
    first: usize,
    count: usize,
    out: &mut [T],
    columns: usize,
    convert: impl Fn(S) -> T + Copy,
) {
    let Matrix { data, rows: depth, cols: width, row, col } = b;
    let count = count.min(width - first);
    let steps = out.chunks_mut(columns * T::DEPTHS).take(depth.div_ceil(T::DEPTHS)).enumerate();
    if col == 1 && T::DEPTHS == 1 {
        for (k, out) in steps {
            let from = &data[k * row + first..][..count];
            out.iter_mut().zip(from).for_each(|(out, x)| *out = convert(*x));
        }
        return;
    }
    if col == 1 && T::DEPTHS == 2 && depth.is_multiple_of(2) {
        for (step, out) in steps {
            let rows = [0, 1].map(|part| &data[(2 * step + part) * row + first..][..count]);
            let rows = rows[0].iter().zip(rows[1]);
            for (out, (a, b)) in out.chunks_exact_mut(2).zip(rows) {
                (out[0], out[1]) = (convert(*a), convert(*b));
            }
        }
        return;
    }
    for begin in (0..depth).step_by(BLOCK) {
        let block = BLOCK.min(depth - begin);
        for j in 0..count {
            let column = &data[(first + j) * col + begin * row..];
            for k in 0..block {
                let (step, part) = ((begin + k) / T::DEPTHS, (begin + k) % T::DEPTHS);
                out[(step * columns + j) * T::DEPTHS + part] = convert(column[k * row]);
            }
        }
    }
}
