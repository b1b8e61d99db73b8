//! Sums of dot products between rows: `sums += X X^T`, streaming over the columns of `X`, in f64.
//!
//! `X` never exists as a whole. A panel of a few hundred of its columns is converted to f64 at a time, small
//! enough for the cache, and every tile of `sums` adds up its panels in the same order whatever the number
//! of threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows of a tile, and what the number of rows is padded to. A multiple of [`TILE_COLS`].
const TILE_ROWS: usize = 4;
/// Columns of a tile: 4 by 2 vector accumulators keep the multipliers busy within 16 registers.
const TILE_COLS: usize = 2;
/// Columns of a panel: 250 rows of it are 750 KiB. A multiple of every vector width.
const PANEL: usize = 384;

/// Running sums of dot products between `num_rows` rows; only `col >= row` is meaningful.
#[derive(Debug, Clone)]
pub(crate) struct Gram {
    num_rows: usize,
    // Number of rows padded to whole tiles; the padding stays zero.
    stride: usize,
    sums: Vec<f64>,
}

impl Gram {
    pub(crate) fn new(num_rows: usize) -> Self {
        let stride = num_rows.next_multiple_of(TILE_ROWS);
        Self { num_rows, stride, sums: vec![0.0; stride * stride] }
    }

    /// The sum for `row <= col`.
    pub(crate) fn sum(&self, row: usize, col: usize) -> f64 {
        self.sums[row * self.stride + col]
    }

    /// Adds another's sums; both must have the same number of rows.
    pub(crate) fn merge(&mut self, other: &Gram) {
        for (sum, more) in self.sums.iter_mut().zip(&other.sums) {
            *sum += more;
        }
    }

    /// Adds the dot products of `num_cols` more columns.
    ///
    /// `fill(row, start, out)` writes columns `start..start + out.len()` of a row.
    pub(crate) fn add(&mut self, num_cols: usize, fill: impl Fn(usize, usize, &mut [f64]) + Sync) {
        let Self { num_rows, stride, ref mut sums } = *self;
        let arch = Arch::new();
        let mut panel = vec![0.0; stride * PANEL];
        for start in (0..num_cols).step_by(PANEL) {
            let width = PANEL.min(num_cols - start);
            panel.par_chunks_mut(PANEL).take(num_rows).enumerate().for_each(|(row, out)| {
                let (filled, rest) = out.split_at_mut(width);
                fill(row, start, filled);
                rest.fill(0.0);
            });
            sums.par_chunks_mut(TILE_ROWS * stride).enumerate().for_each(|(tile, sums)| {
                arch.dispatch(AddTileRow { panel: &panel, sums, first_row: tile * TILE_ROWS, stride });
            });
        }
    }
}

/// Adds one panel to `TILE_ROWS` rows of the sums, from their diagonal on.
struct AddTileRow<'a> {
    panel: &'a [f64],
    sums: &'a mut [f64],
    first_row: usize,
    stride: usize,
}

impl WithSimd for AddTileRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { panel, sums, first_row, stride } = self;
        let row = |row: usize| S::as_simd_f64s(&panel[row * PANEL..(row + 1) * PANEL]).0;
        let [a0, a1, a2, a3] = [0, 1, 2, 3].map(|at| row(first_row + at));
        for col in (first_row..stride).step_by(TILE_COLS) {
            let [b0, b1] = [row(col), row(col + 1)];
            let mut acc = [[simd.splat_f64s(0.0); TILE_COLS]; TILE_ROWS];
            for (((((&a0, &a1), &a2), &a3), &b0), &b1) in a0.iter().zip(a1).zip(a2).zip(a3).zip(b0).zip(b1) {
                for (acc, a) in acc.iter_mut().zip([a0, a1, a2, a3]) {
                    acc[0] = simd.mul_add_e_f64s(a, b0, acc[0]);
                    acc[1] = simd.mul_add_e_f64s(a, b1, acc[1]);
                }
            }
            for (at, acc) in acc.iter().enumerate() {
                for (sum, &acc) in sums[at * stride + col..].iter_mut().zip(acc) {
                    *sum += simd.reduce_sum_f64s(acc);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_sums_at_every_size() {
        for (num_rows, num_cols) in [(1, 1), (2, 5), (3, 383), (4, 384), (5, 385), (9, 1000)] {
            let entry = |row: usize, col: usize| ((row * 31 + col * 17) % 23) as f64 - 11.0;
            let mut gram = Gram::new(num_rows);
            for _ in 0..2 {
                gram.add(num_cols, |row, start, out| {
                    for (at, out) in out.iter_mut().enumerate() {
                        *out = entry(row, start + at);
                    }
                });
            }
            for i in 0..num_rows {
                for j in i..num_rows {
                    let plain: f64 = (0..num_cols).map(|col| entry(i, col) * entry(j, col)).sum();
                    // Small integers: every sum is exact.
                    assert_eq!(gram.sum(i, j), 2.0 * plain, "{num_rows} rows, {num_cols} columns");
                }
            }
        }
    }
}
