//! Right factors in the order in which products read them.

use std::sync::Arc;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::tile::columns;
use super::unit::Factor;
use crate::cpu::scratch::Scratch;
use crate::instruction_set::arch;

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
#[derive(Clone)]
pub(crate) struct Packed<T: Factor> {
    data: Arc<Scratch<T>>,
    /// Panel of `data` that is this factor's first.
    first: usize,
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
        Self::with(arch(), right, Scratch::take)
    }

    /// For many products.
    pub(crate) fn kept(right: Right<'_, T>) -> Self {
        Self::with(arch(), right, Scratch::own)
    }

    pub(super) fn with(arch: Arch, right: Right<'_, T>, memory: impl FnOnce(usize) -> Scratch<T>) -> Self {
        Self::fill(arch, right.depth, right.width, memory, |columns, panel, out| {
            if (panel + 1) * columns > right.width || !right.depth.is_multiple_of(T::DEPTHS) {
                out.fill(T::default());
            }
            fill_panel(right, panel * columns, columns, out, columns);
        })
    }

    /// Two factors of one size for many products: of each panel the first lane group is columns of `a`, the
    /// second the same columns of `b`.
    pub(crate) fn pair(a: Right<'_, T>, b: Right<'_, T>) -> Self {
        Self::pair_for(arch(), a, b)
    }

    pub(super) fn pair_for(arch: Arch, a: Right<'_, T>, b: Right<'_, T>) -> Self {
        assert_eq!((a.depth, a.width), (b.depth, b.width));
        let lanes = arch.dispatch(Columns) / 2;
        let width = a.width.div_ceil(lanes) * 2 * lanes;
        Self::fill(arch, a.depth, width, Scratch::own, |columns, panel, out| {
            fill_panel(a, panel * lanes, lanes, out, columns);
            fill_panel(b, panel * lanes, lanes, &mut out[lanes * T::DEPTHS..], columns);
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
        Self { data: Arc::new(data), first: 0, arch, columns, depth, width }
    }

    /// Whether `next` can lie beside this factor: it ends with a panel, and panels are alike.
    pub(crate) fn joins(&self, next: &Self) -> bool {
        let alike = (self.columns, self.depth) == (next.columns, next.depth);
        alike && self.width.is_multiple_of(self.columns) && next.width.is_multiple_of(next.columns)
    }

    /// These factors, all of which [`joins`](Self::joins) the first, side by side: memory that nothing else holds
    /// goes as it is copied.
    pub(crate) fn joined(factors: Vec<Self>) -> Option<Self> {
        let Self { arch, columns, depth, .. } = *factors.first()?;
        let width: usize = factors.iter().map(|it| it.width).sum();
        let panel = depth.next_multiple_of(T::DEPTHS) * columns;
        let mut data = Scratch::reserved(width / columns * panel);
        for it in factors {
            assert!(it.columns == columns && it.depth == depth && it.width.is_multiple_of(columns));
            data.extend(&it.data[it.first * panel..][..it.panels() * panel]);
        }
        Some(Self { data: Arc::new(data), first: 0, arch, columns, depth, width })
    }

    /// The `width` columns from `first` on, which is a panel's first, of the same memory.
    pub(crate) fn part(&self, first: usize, width: usize) -> Self {
        assert!(first.is_multiple_of(self.columns) && first + width <= self.width);
        Self { first: self.first + first / self.columns, width, ..self.clone() }
    }

    /// The `width` columns of each factor, one after the other: what [`pair`](Self::pair) took.
    pub(crate) fn unpaired(&self, width: usize) -> [Vec<T>; 2] {
        let lanes = self.columns / 2;
        let column = |j: usize| self.column(j).collect::<Vec<_>>();
        let of = |first: usize| {
            (0..width).flat_map(|j| column(j / lanes * 2 * lanes + first + j % lanes)).collect()
        };
        [of(0), of(lanes)]
    }

    /// The columns one after the other: what [`Right::columns`] took.
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

    /// The panel's elements.
    pub(super) fn panel(&self, panel: usize) -> &[T] {
        let len = self.depth.next_multiple_of(T::DEPTHS) * self.columns;
        &self.data[(self.first + panel) * len..][..len]
    }
}

/// Depths that are transposed at once: a cache line of every column.
const BLOCK: usize = 16;

/// Writes columns `first..first + count`, as far as there are, to the first of `columns` columns of a panel.
fn fill_panel<T: Factor>(right: Right<'_, T>, first: usize, count: usize, out: &mut [T], columns: usize) {
    let Right { data, depth, width, row, col } = right;
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
