//! A few rows times one panel, summed in registers.

use pulp::Simd;

use super::panels::PANEL;

/// Most rows that a tile has with any instruction set.
pub(crate) const MAX_ROWS: usize = 12;

/// Where the elements of one row of the left factor lie: `count` runs of `len`, `step` apart.
///
/// A row of a matrix is one run; what a convolution sees is one run for each row of its window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runs {
    pub(crate) count: usize,
    pub(crate) len: usize,
    pub(crate) step: usize,
}

impl Runs {
    /// One run.
    pub(crate) fn row(len: usize) -> Self {
        Self { count: 1, len, step: 0 }
    }
}

/// Registers side by side in a tile; with the sums of all its rows they fill the register file.
const COLS: usize = 2;

/// Rows of a tile with this instruction set.
pub(crate) fn rows_of<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { MAX_ROWS } else { MAX_ROWS / 2 }
}

/// Multiplies rows of `xs` that begin at `starts` with a panel's first `columns`, and gives each sum to
/// `finish`.
///
/// [`rows_of`] of the `starts` are used; `finish` takes row, first column and a register of sums, the last
/// of which may lie beyond `columns`.
/// Every sum runs through the row in order, so its value does not depend on what else is in the tile.
#[inline(always)]
pub(crate) fn tile<S: Simd>(
    simd: S,
    (xs, starts, runs): (&[f32], &[usize; MAX_ROWS], Runs),
    panel: &[f32],
    columns: usize,
    mut finish: impl FnMut(usize, usize, S::f32s),
) {
    let registers = columns.min(PANEL).div_ceil(S::F32_LANES);
    let rows = (xs, starts, runs);
    for first in (0..registers).step_by(COLS) {
        match (rows_of::<S>() == MAX_ROWS, first + 1 < registers) {
            (true, true) => sums::<S, MAX_ROWS, COLS>(simd, rows, (panel, first), &mut finish),
            (true, false) => sums::<S, MAX_ROWS, 1>(simd, rows, (panel, first), &mut finish),
            (false, true) => sums::<S, { MAX_ROWS / 2 }, COLS>(simd, rows, (panel, first), &mut finish),
            (false, false) => sums::<S, { MAX_ROWS / 2 }, 1>(simd, rows, (panel, first), &mut finish),
        }
    }
}

#[inline(always)]
fn sums<S: Simd, const ROWS: usize, const COLS: usize>(
    simd: S,
    (xs, starts, runs): (&[f32], &[usize; MAX_ROWS], Runs),
    (panel, first): (&[f32], usize),
    finish: &mut impl FnMut(usize, usize, S::f32s),
) {
    let mut sums = [[simd.splat_f32s(0.0); COLS]; ROWS];
    for (run, panel) in panel.chunks_exact(runs.len * PANEL).take(runs.count).enumerate() {
        let mut rows = [xs; ROWS];
        for i in 0..ROWS {
            rows[i] = &xs[starts[i] + run * runs.step..][..runs.len];
        }
        let (panel, _) = S::as_simd_f32s(panel);
        for (k, right) in panel.chunks_exact(PANEL / S::F32_LANES).enumerate() {
            let right = &right[first..first + COLS];
            for i in 0..ROWS {
                let left = simd.splat_f32s(rows[i][k]);
                for j in 0..COLS {
                    sums[i][j] = simd.mul_add_e_f32s(left, right[j], sums[i][j]);
                }
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (j, &sum) in sums.iter().enumerate() {
            finish(i, (first + j) * S::F32_LANES, sum);
        }
    }
}
