//! The distance from each row to its k-th neighbour.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::distances::{Bounds, FramedRows, Tile, squared_distance};

/// Candidates that a row keeps before they are sorted out, besides the k it needs.
const SPARE: usize = 64;

/// The exact squared distance of every row to its `k`-th nearest other row; there are more than `k` rows.
///
/// Only half of the pairs are multiplied, since each serves two rows; `done` hears of every tile.
pub(crate) fn squared_radii(rows: &FramedRows<'_>, k: usize, scale: f64, done: impl Fn() + Sync) -> Vec<f64> {
    let num_tiles = rows.num_tiles();
    let blocks: Vec<Mutex<Vec<Nearest>>> = (0..num_tiles)
        .map(|tile| Mutex::new(rows.tile(tile).map(|row| Nearest::new(rows, row, k, scale)).collect()))
        .collect();
    let pairs: Vec<(usize, usize)> =
        (0..num_tiles).flat_map(|high| (0..=high).map(move |low| (low, high))).collect();
    pairs.into_par_iter().for_each(|(low, high)| {
        let tile = Tile::new((rows, low), (rows, high));
        // The lower block is locked first, always: nobody waits in a circle. A panic elsewhere ends this too.
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
    /// What exact squared distances are multiplied by.
    scale: f64,
    /// The k-th neighbour is no farther than this.
    reach: f64,
    /// The k smallest upper bounds, rising.
    uppers: Vec<f64>,
    // Holds every row seen whose lower bound is within reach.
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
