//! Forward and backward of [`crate::neighbours`], a row of the grid at a time.

use rayon::prelude::*;

use super::element::Element;

/// Sizes of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) d: usize,
}

impl Grid {
    /// The place `(row + i - 1, column + j - 1)`, counted over the whole batch, if it is on the grid.
    fn place(self, row: usize, column: usize, (i, j): (usize, usize)) -> Option<usize> {
        let (image, r) = (row / self.rows, row % self.rows);
        let (r, c) = ((r + i).checked_sub(1)?, (column + j).checked_sub(1)?);
        let inside = r < self.rows && c < self.columns;
        inside.then_some((image * self.rows + r) * self.columns + c)
    }
}

pub(crate) fn forward<T: Element>(x: &[T], grid: Grid) -> Vec<T> {
    let Grid { columns, d, .. } = grid;
    let mut out = vec![T::zero(); 9 * x.len()];
    out.par_chunks_mut((columns * 9 * d).max(1)).enumerate().for_each(|(row, out)| {
        for (column, out) in out.chunks_mut(9 * d).enumerate() {
            for (tap, out) in out.chunks_mut(d).enumerate() {
                if let Some(place) = grid.place(row, column, (tap / 3, tap % 3)) {
                    out.copy_from_slice(&x[place * d..][..d]);
                }
            }
        }
    });
    out
}

/// What each place gave to the nine around it, taken back in order.
pub(crate) fn backward<T: Element>(grad: &[T], grid: Grid) -> Vec<T> {
    let Grid { columns, d, .. } = grid;
    let mut out = vec![T::zero(); grad.len() / 9];
    out.par_chunks_mut((columns * d).max(1)).enumerate().for_each(|(row, out)| {
        let (mut sum, mut wide) = (vec![0f32; d], vec![0f32; d]);
        for (column, out) in out.chunks_mut(d).enumerate() {
            sum.fill(0.0);
            for tap in 0..9 {
                // As this place's neighbour at one side, it is the neighbour's at the other.
                let (i, j) = (2 - tap / 3, 2 - tap % 3);
                if let Some(place) = grid.place(row, column, (i, j)) {
                    T::widen(&grad[(place * 9 + tap) * d..][..d], &mut wide);
                    sum.iter_mut().zip(&wide).for_each(|(sum, x)| *sum += x);
                }
            }
            T::narrow(&sum, out);
        }
    });
    out
}
