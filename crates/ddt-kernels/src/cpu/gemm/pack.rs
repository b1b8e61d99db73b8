//! Right factors in the order in which products read them.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::tile::columns;
use super::unit::Factor;
use crate::cpu::scratch::Scratch;

/// A matrix of `depth` rows and `width` columns whose element (k, j) is `data[k * row + j * col]`.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) depth: usize,
    pub(crate) width: usize,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl<'a, T> Right<'a, T> {
    /// The (depth, width) matrix whose rows are those of `data`.
    pub(crate) fn rows(data: &'a [T], depth: usize, width: usize) -> Self {
        Self { data, depth, width, row: width, col: 1 }
    }

    /// The (depth, width) matrix whose columns are the rows of `data`.
    pub(crate) fn columns(data: &'a [T], depth: usize, width: usize) -> Self {
        Self { data, depth, width, row: 1, col: depth }
    }
}

/// A right factor in panels as wide as two lane groups: of step `s` of panel `p`, the elements of column after
/// column, `DEPTHS` of each. What lies past the last row or column is zero.
pub(crate) struct Packed<T: Factor> {
    data: Scratch<T>,
    /// What multiplies by it: the width of panels depends on it.
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

impl<T: Factor> Packed<T> {
    /// For one product: the memory is pooled.
    pub(crate) fn new(right: Right<'_, T>) -> Self {
        Self::with(Arch::new(), right, Scratch::take)
    }

    /// For many products.
    pub(crate) fn kept(right: Right<'_, T>) -> Self {
        Self::with(Arch::new(), right, Scratch::own)
    }

    pub(super) fn with(arch: Arch, right: Right<'_, T>, memory: impl FnOnce(usize) -> Scratch<T>) -> Self {
        let columns = arch.dispatch(Columns);
        let Right { depth, width, .. } = right;
        let panel = depth.next_multiple_of(T::DEPTHS) * columns;
        let mut data = memory(width.div_ceil(columns) * panel);
        if panel > 0 {
            let fill = |(i, out)| fill_panel(right, i * columns, columns, out);
            data.par_chunks_exact_mut(panel).enumerate().for_each(fill);
        }
        Self { data, arch, columns, depth, width }
    }

    /// The columns one after the other: what [`Right::columns`] took.
    pub(crate) fn unpacked(&self) -> Vec<T> {
        let element = |(j, k): (usize, usize)| {
            let (step, part) = (k / T::DEPTHS, k % T::DEPTHS);
            self.panel(j / self.columns)[(step * self.columns + j % self.columns) * T::DEPTHS + part]
        };
        (0..self.width).flat_map(|j| (0..self.depth).map(move |k| (j, k))).map(element).collect()
    }

    pub(super) fn panels(&self) -> usize {
        self.width.div_ceil(self.columns)
    }

    /// The panel's elements.
    pub(super) fn panel(&self, panel: usize) -> &[T] {
        let len = self.depth.next_multiple_of(T::DEPTHS) * self.columns;
        &self.data[panel * len..][..len]
    }
}

/// Depths that are transposed at once: a cache line of every column.
const BLOCK: usize = 16;

fn fill_panel<T: Factor>(right: Right<'_, T>, first: usize, columns: usize, out: &mut [T]) {
    let Right { data, depth, width, row, col } = right;
    let count = columns.min(width - first);
    if count < columns || !depth.is_multiple_of(T::DEPTHS) {
        out.fill(T::default());
    }
    if col == 1 && T::DEPTHS == 1 {
        for (k, out) in out.chunks_exact_mut(columns).enumerate() {
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
