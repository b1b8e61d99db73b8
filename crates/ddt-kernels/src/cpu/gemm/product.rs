//! The cut of a product into tasks and tiles.
#![expect(
    unsafe_code,
    reason = "tiles are bounded once for each product; results are written before they are read"
)]

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::finish::{Finish, Store, Sums};
use super::pack::Packed;
use super::tile::{EMPTY, MAX_ROWS, columns, next_rows, tile};
use super::unit::{Factor, Unit, WithUnit};
use crate::cpu::element::Element;
use crate::cpu::scratch::Scratch;

/// Depths that are summed before sums return to memory: this much of a panel and of a task's rows stays in
/// the second-level cache.
const DEPTH: usize = 512;
/// What the rows of one task take, at most: of the second-level cache, a panel gets the rest. The more rows, the
/// fewer times the right factor is read.
const TASK_BYTES: usize = 640 << 10;
/// Tasks of a thread, at least, where the size of the product allows: so many that no thread waits long.
const TASKS_A_THREAD: usize = 4;

/// Elements between moved rows: a cache line or a half.
const PADDING: usize = 16;

/// A matrix whose element (i, k) is `data[i * row + k * col]`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, T> {
    data: &'a [T],
    rows: usize,
    depth: usize,
    row: usize,
    col: usize,
}

impl<'a, T> Left<'a, T> {
    /// The (rows, depth) matrix whose rows are those of `data`.
    pub(crate) fn rows(data: &'a [T], rows: usize, depth: usize) -> Self {
        assert!(data.len() >= rows * depth);
        Self { data, rows, depth, row: depth, col: 1 }
    }
}

impl<T: Factor> Left<'_, T> {
    /// Whether neighbouring rows fall on the same few lines of the first-level cache, which holds eight of a
    /// kind: those that lie whole pages apart.
    fn conflicts(&self) -> bool {
        const PAGE: usize = 4096;
        self.col == 1 && self.rows > 8 && (self.row * size_of::<T>()).is_multiple_of(PAGE)
    }

    /// The elements of `rows` at `depth` depths from `begin`, where they do not conflict, and the distance of
    /// rows there.
    fn moved(&self, rows: Range<usize>, begin: usize, depth: usize) -> (Scratch<T>, usize) {
        let row = depth.next_multiple_of(T::DEPTHS).next_multiple_of(PADDING) + PADDING;
        let mut moved = Scratch::take(rows.len() * row);
        let count = depth.next_multiple_of(T::DEPTHS);
        for (to, i) in moved.chunks_exact_mut(row).zip(rows) {
            to[..count].copy_from_slice(&self.data[i * self.row + begin..][..count]);
        }
        (moved, row)
    }
}

impl<'a> Left<'a, f32> {
    /// The (rows, depth) matrix whose columns are the rows of `data`.
    pub(crate) fn columns(data: &'a [f32], rows: usize, depth: usize) -> Self {
        assert!(data.len() >= rows * depth);
        Self { data, rows, depth, row: 1, col: rows }
    }
}

/// `left right`, row-major, plus `bias` to every row, rounded once.
pub(crate) fn product<T: Factor + Element>(
    left: Left<'_, T>,
    right: &Packed<T>,
    bias: Option<&[f32]>,
) -> Vec<T> {
    collect(left.rows * right.width, |out| run(left, right, &Store::new(out, right.width, bias)))
}

/// Adds `left right`, row-major, to `out`.
pub(crate) fn add_product(left: Left<'_, f32>, right: &Packed<f32>, out: &mut [f32]) {
    assert_eq!(out.len(), left.rows * right.width);
    run(left, right, &Store::adding(out, right.width));
}

/// A vector of `len` elements that `write` writes all of, by a [`run`] whose result has this many.
pub(crate) fn collect<T>(len: usize, write: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut out = Vec::with_capacity(len);
    write(&mut out.spare_capacity_mut()[..len]);
    // SAFETY: `run` hands over a tile for every place, and every `Finish` writes what it is handed.
    unsafe { out.set_len(len) };
    out
}

/// Hands the tiles of `left right` to `finish`.
pub(crate) fn run<T: Factor, F: Finish>(left: Left<'_, T>, right: &Packed<T>, finish: &F) {
    assert_eq!(left.depth, right.depth);
    let panels = right.panels();
    if left.rows == 0 || panels == 0 {
        return;
    }
    let even;
    let left = if left.depth.is_multiple_of(T::DEPTHS) {
        left
    } else {
        even = with_even_rows(left);
        Left { data: &even, row: left.depth.next_multiple_of(T::DEPTHS), ..left }
    };
    // Tiles of rows, spread evenly over blocks.
    let tiles = left.rows.div_ceil(MAX_ROWS);
    let depth = if F::WHOLE { left.depth } else { left.depth.min(DEPTH) };
    let most = (TASK_BYTES / (MAX_ROWS * size_of::<T>() * depth.max(1))).max(1);
    let block_rows = MAX_ROWS * tiles.div_ceil(tiles.div_ceil(most));
    let blocks = left.rows.div_ceil(block_rows);
    let tasks = TASKS_A_THREAD * rayon::current_num_threads();
    let each = panels.div_ceil(tasks.div_ceil(blocks).min(panels));
    let groups = panels.div_ceil(each);
    (0..blocks * groups).into_par_iter().for_each(|task| {
        let (block, group) = (task / groups, task % groups);
        let rows = block * block_rows..((block + 1) * block_rows).min(left.rows);
        let panels = group * each..((group + 1) * each).min(panels);
        T::dispatch(right.arch, Task { left, right, rows, panels, finish });
    });
}

/// The rows of `left`, each with zeros up to a whole step.
fn with_even_rows<T: Factor>(left: Left<'_, T>) -> Vec<T> {
    let row = left.depth.next_multiple_of(T::DEPTHS);
    let mut even = vec![T::default(); left.rows * row];
    for (even, from) in even.chunks_exact_mut(row).zip(left.data.chunks_exact(left.depth)) {
        even[..left.depth].copy_from_slice(from);
    }
    even
}

struct Task<'a, T: Factor, F> {
    left: Left<'a, T>,
    right: &'a Packed<T>,
    rows: Range<usize>,
    panels: Range<usize>,
    finish: &'a F,
}

impl<T: Factor, F: Finish> WithUnit<T> for Task<'_, T, F> {
    #[inline(always)]
    fn with_unit<U: Unit<Elem = T>>(self, unit: U) {
        let Self { left, right, rows, panels, finish } = self;
        let stride = columns::<U::Simd>();
        assert_eq!(stride, right.columns);
        let mut sums = EMPTY;
        let depths = left.depth;
        let most = if F::WHOLE { depths.max(1) } else { DEPTH };
        for begin in (0..depths.max(1)).step_by(most) {
            let depth = most.min(depths - begin);
            let steps = depth.div_ceil(T::DEPTHS);
            let moved = left.conflicts().then(|| left.moved(rows.clone(), begin, depth));
            let (origin, a_row) = match &moved {
                Some((moved, row)) => (moved.as_ptr().wrapping_sub(rows.start * row), *row),
                None => (left.data.as_ptr().wrapping_add(begin * left.col), left.row),
            };
            for panel in panels.clone() {
                let b = &right.panel(panel)[begin * stride..];
                let col = panel * stride;
                let cols = stride.min(right.width - col);
                let mut row = rows.start;
                while row < rows.end {
                    let height = next_rows::<U::Simd>(rows.end - row);
                    let a = origin.wrapping_add(row * a_row);
                    let strides = (a_row, left.col * T::DEPTHS);
                    finish.prefetch(row..row + height, col);
                    // SAFETY: rows below `left.rows` and steps of depths below `left.depth` lie in
                    // `left.data`, which its constructors check and `with_even_rows` extends, or in `moved`; `panel`
                    // returned all steps of `right.depth`, and the depths are equal.
                    unsafe { tile(unit, height, steps, a, strides, b.as_ptr(), &mut sums) };
                    let values = &sums[..height * stride];
                    let (first, last) = (begin == 0, begin + depth >= depths);
                    finish.tile(
                        unit.simd(),
                        Sums { row, rows: height, col, cols, values, stride, first, last },
                    );
                    row += height;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::pack::Right;
    use super::*;

    /// Small integers, whose sums are exact in any order.
    fn integers(count: usize, modulus: usize) -> Vec<f32> {
        (0..count).map(|i| (i * i % modulus) as f32 - (modulus / 2) as f32).collect()
    }

    #[test]
    fn agrees_with_the_definition_in_every_layout_and_instruction_set() {
        let sizes = [
            (1, 1, 1),
            (14, 32, 8),
            (15, 33, 513),
            (3, 70, 40),
            (127, 5, 3),
            (29, 100, 1025),
            (20, 9, 1024),
            (2, 3, 0),
        ];
        for arch in crate::cpu::instruction_sets() {
            for (m, n, k) in sizes {
                let (a, b, bias) = (integers(m * k, 7), integers(k * n, 5), integers(n, 11));
                for (a_by_rows, b_by_rows) in [(true, true), (true, false), (false, true), (false, false)] {
                    let left = if a_by_rows { Left::rows(&a, m, k) } else { Left::columns(&a, m, k) };
                    let right = if b_by_rows { Right::rows(&b, k, n) } else { Right::columns(&b, k, n) };
                    let right = Packed::with(arch, right, Scratch::take);
                    let element = |i: usize, j: usize| -> f32 {
                        let a = |p| if a_by_rows { a[i * k + p] } else { a[p * m + i] };
                        let b = |p| if b_by_rows { b[p * n + j] } else { b[j * k + p] };
                        (0..k).map(|p| a(p) * b(p)).sum()
                    };
                    let want: Vec<f32> = (0..m * n).map(|at| element(at / n, at % n)).collect();
                    assert_eq!(product(left, &right, None), want, "{m} x {k} x {n}");
                    let biased = product(left, &right, Some(&bias));
                    assert!(biased.iter().enumerate().all(|(at, x)| *x == want[at] + bias[at % n]));
                    let mut sum = want.clone();
                    add_product(left, &right, &mut sum);
                    assert!(sum.iter().zip(&want).all(|(sum, x)| *sum == 2.0 * x));
                }
            }
        }
    }

    #[test]
    fn pairs_of_bf16_agree_with_f32_by_every_unit() {
        for arch in crate::cpu::instruction_sets() {
            for (m, n, k) in [(1, 1, 1), (15, 33, 513), (29, 100, 64), (17, 20, 2048), (2, 3, 0), (5, 31, 7)]
            {
                let (a, b, bias) = (integers(m * k, 7), integers(k * n, 5), integers(n, 11));
                let want = product(Left::rows(&a, m, k), &Packed::new(Right::columns(&b, k, n)), Some(&bias));
                let half = |xs: &[f32]| xs.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
                let (a, b) = (half(&a), half(&b));
                for right in [Right::columns(&b, k, n), Right::rows(&transposed(&b, n, k), k, n)] {
                    let right = Packed::with(arch, right, Scratch::own);
                    let got = product(Left::rows(&a, m, k), &right, Some(&bias));
                    assert_eq!(got, half(&want), "{m} x {k} x {n}");
                }
            }
        }
    }

    fn transposed(rows: &[bf16], count: usize, width: usize) -> Vec<bf16> {
        (0..count * width).map(|at| rows[at % count * width + at / count]).collect()
    }
}
