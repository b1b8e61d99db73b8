//! Distances between rows, and from each row to its k-th neighbour.
//!
//! The exact squared distance is `sum_i (a_i - b_i)^2` in f64. The fast one is
//!
//! ```text
//! |a|^2 + |b|^2 - 2 a.b
//! ```
//!
//! with the products in f32 on centred rows, so that little cancels. It comes with a bound: a sum of `n` products
//! in f32 errs by at most `n u / (1 - n u)` of the product of the norms, in any order (`u = 2^-24`), and rounding a
//! row to f32 by `u` of its norm. So either the fast distance decides a comparison, or the exact one is computed:
//! the outcome is always that of exact distances.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::features::Features;

/// Rows on either side of a tile of distances: the tile is 1 MiB.
const TILE: usize = 512;

/// Partial sums in f64, so that instructions need not wait for each other.
const LANES: usize = 8;

/// The squared distance of two rows, exact to rounding of f64, and the same either way round.
pub(crate) fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |a: f32, b: f32| {
        let difference = f64::from(a) - f64::from(b);
        difference * difference
    };
    let mut sums = [0.0; LANES];
    let (whole, rest) = (a.chunks_exact(LANES).zip(b.chunks_exact(LANES)), a.len() / LANES * LANES);
    for (a, b) in whole {
        for lane in 0..LANES {
            sums[lane] += square(a[lane], b[lane]);
        }
    }
    for ((sum, &a), &b) in sums.iter_mut().zip(&a[rest..]).zip(&b[rest..]) {
        *sum += square(a, b);
    }
    sums.iter().sum()
}

/// Centre and scale of rows before they are rounded to f32.
#[derive(Debug)]
pub(crate) struct Frame {
    centre: Vec<f64>,
    /// A power of two that brings all numbers into [-1, 1].
    scale: f64,
}

impl Frame {
    /// The mean of the last set as centre, and the largest deviation in either as scale.
    pub(crate) fn around(sets: [Features<'_>; 2]) -> Self {
        let [_, last] = sets;
        let mut centre = vec![0.0; last.size()];
        for row in last.rows() {
            centre.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let num_rows = last.num_rows().max(1) as f64;
        centre.iter_mut().for_each(|it| *it /= num_rows);
        let deviation = |row: &[f32]| {
            row.iter().zip(&centre).map(|(&x, centre)| (f64::from(x) - centre).abs()).fold(0.0, f64::max)
        };
        let largest =
            |set: Features<'_>| set.values().par_chunks(set.size()).map(deviation).reduce(|| 0.0, f64::max);
        let largest = largest(sets[0]).max(largest(sets[1]));
        let scale = if largest > 0.0 { (-largest.log2().ceil()).exp2() } else { 1.0 };
        Self { centre, scale }
    }

    /// Factor of numbers.
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// An exact squared distance in units of this frame; a power of two changes no digit.
    pub(crate) fn squared(&self, distance: f64) -> f64 {
        distance * self.scale * self.scale
    }
}

/// Rows in a frame, in f32, with the exact ones.
#[derive(Debug)]
pub(crate) struct FramedRows<'a> {
    pub(crate) exact: Features<'a>,
    rows: Vec<f32>,
    /// Squared norms of `rows`.
    norms: Vec<f64>,
}

impl<'a> FramedRows<'a> {
    pub(crate) fn new(features: Features<'a>, frame: &Frame) -> Self {
        let size = features.size();
        let mut rows = vec![0.0; features.values().len()];
        let pairs = rows.par_chunks_mut(size).zip(features.values().par_chunks(size));
        let norms = pairs.map(|(framed, row)| {
            for ((framed, &x), centre) in framed.iter_mut().zip(row).zip(&frame.centre) {
                *framed = ((f64::from(x) - centre) * frame.scale) as f32;
            }
            framed.iter().map(|&x| f64::from(x) * f64::from(x)).sum()
        });
        let norms = norms.collect();
        Self { exact: features, rows, norms }
    }

    pub(crate) fn num_rows(&self) -> usize {
        self.norms.len()
    }

    pub(crate) fn num_tiles(&self) -> usize {
        self.num_rows().div_ceil(TILE)
    }

    /// The rows of one tile.
    pub(crate) fn tile(&self, tile: usize) -> Range<usize> {
        tile * TILE..self.num_rows().min((tile + 1) * TILE)
    }

    fn matrix(&self, rows: Range<usize>) -> MatRef<'_, f32> {
        let size = self.exact.size();
        MatRef::from_row_major_slice(&self.rows[rows.start * size..rows.end * size], rows.len(), size)
    }
}

/// Bounds of the distances between two tiles of rows.
pub(crate) struct Tile<'a> {
    products: Vec<f32>,
    /// Squared norms of either side.
    pub(crate) left: &'a [f64],
    right: &'a [f64],
    slack: f64,
    least: f64,
}

impl<'a> Tile<'a> {
    /// Multiplies two tiles.
    pub(crate) fn new(left: (&'a FramedRows<'a>, usize), right: (&'a FramedRows<'a>, usize)) -> Self {
        let (rows, columns) = (left.0.tile(left.1), right.0.tile(right.1));
        let mut products = vec![0.0; rows.len() * columns.len()];
        let size = left.0.exact.size();
        let out = MatMut::from_row_major_slice_mut(&mut products, rows.len(), columns.len());
        let (a, b) = (left.0.matrix(rows.clone()), right.0.matrix(columns.clone()));
        matmul(out, Accum::Replace, a, b.transpose(), 1.0, Par::Seq);
        let half_ulp = 0.5 * f64::from(f32::EPSILON);
        let error = (size + 16) as f64 * half_ulp;
        Self {
            products,
            left: &left.0.norms[rows],
            right: &right.0.norms[columns],
            slack: error / (1.0 - error),
            // Underflow in f32, even if it flushes to zero.
            least: (size as f64) * 2f64.powi(-100),
        }
    }

    /// For one row: the column, and bounds of the exact squared distance in units of the frame.
    #[inline]
    pub(crate) fn bounds(&self, row: usize) -> impl Iterator<Item = (usize, Bounds)> {
        let norm = self.left[row];
        let products = &self.products[row * self.right.len()..(row + 1) * self.right.len()];
        products.iter().zip(self.right).enumerate().map(move |(column, (&product, other))| {
            let sum = norm + other;
            let (middle, error) = (sum - 2.0 * f64::from(product), sum * self.slack + self.least);
            (column, Bounds { lower: middle - error, upper: middle + error })
        })
    }
}

/// Bounds of a squared distance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) lower: f64,
    pub(crate) upper: f64,
}

/// Candidates of a row beyond the k it needs, before they are reduced.
const SPARE: usize = 64;

/// The exact squared distance of every row to its `k`-th nearest other row; there are more than `k` rows.
///
/// Only half of the pairs are multiplied, since each serves two rows; `done` is called after every tile.
pub(crate) fn squared_radii(rows: &FramedRows<'_>, k: usize, scale: f64, done: impl Fn() + Sync) -> Vec<f64> {
    let num_tiles = rows.num_tiles();
    let blocks: Vec<Mutex<Vec<Nearest>>> = (0..num_tiles)
        .map(|tile| Mutex::new(rows.tile(tile).map(|row| Nearest::new(rows, row, k, scale)).collect()))
        .collect();
    let pairs: Vec<(usize, usize)> =
        (0..num_tiles).flat_map(|high| (0..=high).map(move |low| (low, high))).collect();
    pairs.into_par_iter().for_each(|(low, high)| {
        let tile = Tile::new((rows, low), (rows, high));
        // The lower block is always locked first, so that there is no deadlock. A panic elsewhere ends this too.
        let mut near = blocks[low].lock().unwrap_or_else(PoisonError::into_inner);
        if low == high {
            offer_within(&tile, &mut near, rows.tile(low).start);
        } else {
            let mut far = blocks[high].lock().unwrap_or_else(PoisonError::into_inner);
            offer_between(&tile, (&mut near, rows.tile(low).start), (&mut far, rows.tile(high).start));
        }
        done();
    });
    let finished = blocks.into_par_iter().flat_map_iter(|block| {
        block.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().map(Nearest::finish)
    });
    finished.collect()
}

/// Offers the rows of one tile to each other, but none to itself.
fn offer_within(tile: &Tile<'_>, block: &mut [Nearest<'_>], start: usize) {
    for (row, nearest) in block.iter_mut().enumerate() {
        for (column, bounds) in tile.bounds(row) {
            if bounds.lower <= nearest.reach && column != row {
                nearest.offer(start + column, bounds);
            }
        }
    }
}

/// Offers the rows of two tiles to each other.
fn offer_between(tile: &Tile<'_>, near: (&mut [Nearest<'_>], usize), far: (&mut [Nearest<'_>], usize)) {
    let mut reaches: Vec<f64> = far.0.iter().map(|it| it.reach).collect();
    for (row, nearest) in near.0.iter_mut().enumerate() {
        for (column, bounds) in tile.bounds(row) {
            if bounds.lower <= nearest.reach {
                nearest.offer(far.1 + column, bounds);
            }
            if bounds.lower <= reaches[column] {
                far.0[column].offer(near.1 + row, bounds);
                reaches[column] = far.0[column].reach;
            }
        }
    }
}

/// The rows that may be among the `k` nearest of one.
struct Nearest<'a> {
    rows: &'a FramedRows<'a>,
    row: usize,
    k: usize,
    /// Factor of exact squared distances.
    scale: f64,
    /// Upper bound of the distance to the k-th neighbour.
    reach: f64,
    /// The k smallest upper bounds, rising.
    uppers: Vec<f64>,
    // Every row seen whose lower bound is within reach.
    candidates: Vec<(usize, Bounds)>,
}

impl<'a> Nearest<'a> {
    fn new(rows: &'a FramedRows<'a>, row: usize, k: usize, scale: f64) -> Self {
        let (uppers, candidates) = (Vec::new(), Vec::new());
        Self { rows, row, k, scale, reach: f64::INFINITY, uppers, candidates }
    }

    fn offer(&mut self, row: usize, bounds: Bounds) {
        let at = self.uppers.partition_point(|it| *it <= bounds.upper);
        if at < self.k {
            self.uppers.insert(at, bounds.upper);
            self.uppers.truncate(self.k);
            if self.uppers.len() == self.k {
                self.reach = self.uppers[self.k - 1];
            }
        }
        self.candidates.push((row, bounds));
        if self.candidates.len() >= 2 * self.k + SPARE {
            let reach = self.reach;
            self.candidates.retain(|it| it.1.lower <= reach);
            if self.candidates.len() >= 2 * self.k + SPARE / 2 {
                self.settle();
            }
        }
    }

    /// Keeps the k nearest candidates, by exact distances.
    fn settle(&mut self) {
        let exact = self.rows.exact;
        for (other, bounds) in &mut self.candidates {
            // Equal bounds are exact already.
            if bounds.lower < bounds.upper {
                let distance = squared_distance(exact.row(self.row), exact.row(*other));
                let distance = distance * self.scale * self.scale;
                *bounds = Bounds { lower: distance, upper: distance };
            }
        }
        self.candidates.sort_by(|a, b| a.1.upper.total_cmp(&b.1.upper));
        self.candidates.truncate(self.k);
        self.uppers = self.candidates.iter().map(|it| it.1.upper).collect();
        self.reach = self.uppers.get(self.k - 1).copied().unwrap_or(f64::INFINITY);
    }

    /// The exact squared distance to the k-th neighbour, in units of the frame.
    fn finish(mut self) -> f64 {
        let reach = self.reach;
        self.candidates.retain(|it| it.1.lower <= reach);
        self.settle();
        self.reach
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::testing::gaussian;

    #[test]
    fn bounds_hold_at_all_magnitudes() {
        for (factor, offset) in [(1.0, 0.0), (1e-3, 1e4), (1e-38, 0.0), (1e37, 0.0), (1e-44, 0.0), (0.0, 3.0)]
        {
            for size in [1, 7, 300] {
                let rows = |num_rows: usize, seed| -> Vec<f32> {
                    gaussian(num_rows * size, seed).iter().map(|it| it * factor + offset).collect()
                };
                let (left, right) = (rows(TILE + 3, 1), rows(5, 2));
                let (left, right) =
                    (Features::new(&left, size).unwrap(), Features::new(&right, size).unwrap());
                let frame = Frame::around([left, right]);
                let (a, b) = (FramedRows::new(left, &frame), FramedRows::new(right, &frame));
                assert_eq!((a.num_tiles(), b.num_tiles()), (2, 1));
                for tile in 0..2 {
                    let bounds = Tile::new((&a, tile), (&b, 0));
                    for (at, row) in a.tile(tile).enumerate() {
                        for (column, it) in bounds.bounds(at) {
                            let exact = frame.squared(squared_distance(left.row(row), right.row(column)));
                            assert!(it.lower <= exact && exact <= it.upper, "{exact:e} outside {it:?}");
                            let most = 1e-4 * (bounds.left[at] + bounds.right[column]) + 1e-26;
                            assert!(it.upper - it.lower <= most, "{it:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn exact_distances_are_symmetric_and_count_every_column() {
        for size in 1..20 {
            let (a, b): (Vec<f32>, Vec<f32>) = (0..size).map(|at| (at as f32, -1.0)).unzip();
            let want: f64 = (1..=size).map(|it| f64::from(it * it)).sum();
            assert_eq!(squared_distance(&a, &b), want);
            assert_eq!(squared_distance(&b, &a), want);
        }
    }
}
