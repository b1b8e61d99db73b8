//! Rows times panels, with the epilogue, over rayon's pool.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::epilogue::Epilogue;
use super::panels::{PANEL, Panels};
use super::tile::{MAX_ROWS, Runs, rows_of, tile};

/// Rows of one task: with a panel they stay in a core's own cache.
const MAX_TASK_ROWS: usize = 16 * MAX_ROWS;

/// Tasks for each thread, at least, unless rows are few.
const TASKS_A_THREAD: usize = 2;

/// `out = epilogue(x matrix + bias + residual)`, each row of `x` some runs of `xs`.
pub(super) struct Product<'a, F> {
    pub(super) xs: &'a [f32],
    /// Where the first run of a row begins in `xs`.
    pub(super) starts: F,
    pub(super) runs: Runs,
    pub(super) panels: &'a Panels,
    /// One for each column, filled up to whole panels.
    pub(super) bias: &'a [f32],
    /// As large as the result.
    pub(super) residual: Option<&'a [f32]>,
    pub(super) epilogue: Epilogue,
}

impl<F: Fn(usize) -> usize + Sync> Product<'_, F> {
    /// The result's `rows` rows.
    pub(super) fn run(&self, rows: usize) -> Vec<f32> {
        let width = self.panels.width();
        let mut out = vec![0f32; rows * width];
        if out.is_empty() {
            return out;
        }
        // Where tasks begin changes nothing in the result: every sum is made within one row.
        let tasks = TASKS_A_THREAD * rayon::current_num_threads();
        let task_rows = rows.div_ceil(tasks).next_multiple_of(MAX_ROWS).min(MAX_TASK_ROWS);
        out.par_chunks_mut(task_rows * width).enumerate().for_each(|(task, out)| {
            pulp::Arch::new().dispatch(Task { product: self, first: task * task_rows, out });
        });
        out
    }
}

/// Some rows of a product.
struct Task<'a, 'b, F> {
    product: &'a Product<'b, F>,
    first: usize,
    out: &'a mut [f32],
}

impl<F: Fn(usize) -> usize> WithSimd for Task<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { product, first, out } = self;
        let width = product.panels.width();
        let rows = out.len() / width;
        let (bias, _) = S::as_simd_f32s(product.bias);
        for (index, panel) in product.panels.iter().enumerate() {
            for top in (0..rows).step_by(rows_of::<S>()) {
                let mut starts = [0; MAX_ROWS];
                for (i, start) in starts.iter_mut().enumerate() {
                    // Rows beyond the last repeat it, and are not written.
                    *start = (product.starts)(first + (top + i).min(rows - 1));
                }
                tile(
                    simd,
                    (product.xs, &starts, product.runs),
                    panel,
                    width - index * PANEL,
                    #[inline(always)]
                    |i, column, sum| {
                        let (row, column) = (top + i, index * PANEL + column);
                        if row >= rows || column >= width {
                            return;
                        }
                        let len = S::F32_LANES.min(width - column);
                        let mut y = simd.add_f32s(sum, bias[column / S::F32_LANES]);
                        if let Some(residual) = product.residual {
                            let at = (first + row) * width + column;
                            y = simd.add_f32s(y, simd.partial_load_f32s(&residual[at..at + len]));
                        }
                        let y = product.epilogue.apply(simd, y);
                        let at = row * width + column;
                        simd.partial_store_f32s(&mut out[at..at + len], y);
                    },
                );
            }
        }
    }
}
