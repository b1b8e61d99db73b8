//! Improved precision and recall (Kynkäänniemi et al. 2019).
//!
//! A set of features represents the union of balls around its rows, each with the distance to the row's k-th
//! nearest other row as radius. Precision is the share of samples inside some ball of the references, recall the
//! share of references inside some ball of the samples; the boundary is inside.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    error::{MetricsError, check_range, check_row_size, check_rows},
    features::Features,
    neighbours::{Frame, FramedRows, Tile, squared_distance, squared_radii},
};

/// Neighbour that radii reach to in ADM's evaluation and most papers.
pub const NEIGHBOURHOOD: usize = 3;

/// The largest neighbourhood accepted.
const MAX_NEIGHBOURHOOD: usize = 1024;

/// Precision and recall, each in [0, 1].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecisionRecall {
    /// Share of samples inside some reference's ball.
    pub precision: f64,
    /// Share of references inside some sample's ball.
    pub recall: f64,
}

/// Precision and recall with radii to the `neighbourhood`-th neighbour.
///
/// The result is that of exact f64 distances `sum_i (a_i - b_i)^2` throughout, ties and duplicates included,
/// whatever the number of threads. Time grows with all pairs of rows; memory with the rows, twice theirs.
///
/// ```
/// use ddt_metrics::{Features, precision_recall};
///
/// let references = Features::new(&[0.0, 1.0, 2.0, 3.0, 4.0], 1)?;
/// let samples = Features::new(&[2.5, 2.6, 2.7, 90.0], 1)?;
/// let got = precision_recall(samples, references, 2)?;
/// // The last sample is far from all references; its own ball, of radius 87.4, holds two of them.
/// assert_eq!((got.precision, got.recall), (0.75, 0.4));
/// # Ok::<(), ddt_metrics::MetricsError>(())
/// ```
///
/// # Errors
/// [`MetricsError::Input`] for features of different extractors, a `neighbourhood` outside 1..=1024, or a side
/// without more rows than that.
pub fn precision_recall(
    samples: Features<'_>,
    references: Features<'_>,
    neighbourhood: usize,
) -> Result<PrecisionRecall, MetricsError> {
    precision_recall_with_progress(samples, references, neighbourhood, &|_| ())
}

/// [`precision_recall`] that reports progress: the share of work done, in [0, 1], from any thread.
///
/// # Errors
/// As [`precision_recall`].
pub fn precision_recall_with_progress(
    samples: Features<'_>,
    references: Features<'_>,
    neighbourhood: usize,
    on_progress: &(dyn Fn(f64) + Sync),
) -> Result<PrecisionRecall, MetricsError> {
    check_range("neighbours", 1, MAX_NEIGHBOURHOOD as u64, neighbourhood as u64)?;
    check_row_size("the references", samples.size(), references.size())?;
    for (what, rows) in [("the samples", samples.num_rows()), ("the references", references.num_rows())] {
        check_rows(what, neighbourhood as u64 + 1, rows as u64)?;
    }
    let frame = Frame::around([samples, references]);
    let (samples, references) = (FramedRows::new(samples, &frame), FramedRows::new(references, &frame));
    let (rows, columns) = (samples.num_tiles(), references.num_tiles());
    let all = rows * (rows + 1) / 2 + columns * (columns + 1) / 2 + rows * columns;
    let count = AtomicUsize::new(0);
    let done = || on_progress((count.fetch_add(1, Ordering::Relaxed) + 1) as f64 / all as f64);

    let samples = Side::new(samples, neighbourhood, &frame, done);
    let references = Side::new(references, neighbourhood, &frame, done);
    (0..rows * columns).into_par_iter().for_each(|tile| {
        mark_inside(&samples, &references, (tile / columns, tile % columns), &frame);
        done();
    });
    Ok(PrecisionRecall { precision: samples.share_inside(), recall: references.share_inside() })
}

/// One of the two sets.
struct Side<'a> {
    rows: FramedRows<'a>,
    /// Squared radii in units of the frame.
    radii: Vec<f64>,
    /// Whether each row is inside a ball of the other set; threads only ever set these.
    inside: Vec<AtomicBool>,
}

impl<'a> Side<'a> {
    fn new(rows: FramedRows<'a>, neighbourhood: usize, frame: &Frame, done: impl Fn() + Sync) -> Self {
        let radii = squared_radii(&rows, neighbourhood, frame.scale(), done);
        let inside = (0..rows.num_rows()).map(|_| AtomicBool::new(false)).collect();
        Self { rows, radii, inside }
    }

    fn is_inside(&self, row: usize) -> bool {
        self.inside[row].load(Ordering::Relaxed)
    }

    fn mark(&self, row: usize) {
        self.inside[row].store(true, Ordering::Relaxed);
    }

    fn mark_all(&self, start: usize, inside: &[bool]) {
        inside.iter().enumerate().filter(|it| *it.1).for_each(|(row, _)| self.mark(start + row));
    }

    fn share_inside(&self) -> f64 {
        let count = self.inside.iter().filter(|it| it.load(Ordering::Relaxed)).count();
        count as f64 / self.inside.len() as f64
    }
}

/// Marks the rows of two tiles that are inside balls of each other.
fn mark_inside(samples: &Side<'_>, references: &Side<'_>, at: (usize, usize), frame: &Frame) {
    let (rows, columns) = (samples.rows.tile(at.0), references.rows.tile(at.1));
    let tile = Tile::new((&samples.rows, at.0), (&references.rows, at.1));
    // Marked per tile, not per pair: threads share the flags' memory.
    let (mut rows_inside, mut columns_inside) = (vec![false; rows.len()], vec![false; columns.len()]);
    // Pairs that rounding leaves open are decided last: most rows are inside some ball by then.
    let mut open = Vec::new();
    for (row, row_inside) in rows_inside.iter_mut().enumerate() {
        let radius = samples.radii[rows.start + row];
        let balls = references.radii[columns.clone()].iter().zip(&mut columns_inside);
        for ((column, bounds), (&other, column_inside)) in tile.bounds(row).zip(balls) {
            if bounds.lower > radius.max(other) {
                continue;
            }
            *row_inside |= bounds.upper <= other;
            *column_inside |= bounds.upper <= radius;
            if bounds.upper > radius.min(other) {
                open.push((rows.start + row, columns.start + column));
            }
        }
    }
    samples.mark_all(rows.start, &rows_inside);
    references.mark_all(columns.start, &columns_inside);
    for (row, column) in open {
        if samples.is_inside(row) && references.is_inside(column) {
            continue;
        }
        let (a, b) = (samples.rows.exact.row(row), references.rows.exact.row(column));
        let exact = frame.squared(squared_distance(a, b));
        if exact <= references.radii[column] {
            samples.mark(row);
        }
        if exact <= samples.radii[row] {
            references.mark(column);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::testing::gaussian;

    /// By the definition, pair by pair.
    fn brute_force(samples: Features<'_>, references: Features<'_>, k: usize) -> PrecisionRecall {
        let radii = |set: Features<'_>| -> Vec<f64> {
            let radius = |(at, row): (usize, &[f32])| {
                let others = set.rows().enumerate().filter(|(other, _)| *other != at);
                let mut distances: Vec<f64> = others.map(|(_, it)| squared_distance(row, it)).collect();
                distances.sort_by(f64::total_cmp);
                distances[k - 1]
            };
            set.rows().enumerate().map(radius).collect()
        };
        let share = |set: Features<'_>, balls: Features<'_>| {
            let radii = radii(balls);
            let inside = |row: &&[f32]| {
                balls.rows().zip(&radii).any(|(it, radius)| squared_distance(row, it) <= *radius)
            };
            set.rows().filter(inside).count() as f64 / set.num_rows() as f64
        };
        PrecisionRecall { precision: share(samples, references), recall: share(references, samples) }
    }

    fn check(samples: &[f32], references: &[f32], size: usize) {
        let (samples, references) =
            (Features::new(samples, size).unwrap(), Features::new(references, size).unwrap());
        for k in [1, 2, 3, 7] {
            let want = brute_force(samples, references, k);
            assert_eq!(precision_recall(samples, references, k).unwrap(), want, "k {k} of rows of {size}");
        }
    }

    #[test]
    fn equals_the_definition_over_several_tiles() {
        for (size, spread) in [(1, 0.3), (5, 0.8), (40, 1.0)] {
            let samples: Vec<f32> = gaussian(600 * size, 1).iter().map(|it| it * spread + 0.2).collect();
            check(&samples, &gaussian(530 * size, 2), size);
        }
    }

    #[test]
    fn ties_and_duplicates_are_decided_exactly() {
        // Small integers, so that most distances tie; then all of them, on few places, far from zero.
        for (places, offset, size) in [(4.0, 0.0, 3), (2.0, 1000.0, 2), (1e-3, 1e6, 6), (0.0, 5.0, 4)] {
            let grid = |len: usize, seed| -> Vec<f32> {
                gaussian(len, seed).iter().map(|it| (it * places).round() + offset).collect()
            };
            check(&grid(300 * size, 3), &grid(250 * size, 4), size);
        }
        // One set is a copy of the other: everything is on a boundary or inside.
        let rows = gaussian(200 * 3, 5);
        let features = Features::new(&rows, 3).unwrap();
        let got = precision_recall(features, features, 3).unwrap();
        assert_eq!(got, PrecisionRecall { precision: 1.0, recall: 1.0 });
    }

    #[test]
    fn boundaries_that_f32_cannot_tell_apart_are_decided_exactly() {
        // A radius of 1 exactly, and samples just inside and just outside, 4000 from the centre.
        let references = [0.0f32, 1.0, 8000.0, 8001.0];
        for step in -3..=3 {
            let at = f32::from_bits((2.0f32.to_bits() as i32 + step) as u32);
            check_pair(&[at, 5000.0], &references, f64::from(at) - 1.0 <= 1.0);
        }
    }

    fn check_pair(samples: &[f32], references: &[f32], inside: bool) {
        let (samples, references) =
            (Features::new(samples, 1).unwrap(), Features::new(references, 1).unwrap());
        let got = precision_recall(samples, references, 1).unwrap();
        assert_eq!(got.precision, if inside { 0.5 } else { 0.0 });
    }

    #[test]
    fn order_and_threads_change_nothing_and_progress_ends_at_one() {
        let (samples, references) = (gaussian(700 * 4, 8), gaussian(600 * 4, 9));
        let features = |values| Features::new(values, 4).unwrap();
        let last = std::sync::Mutex::new(0.0f64);
        let note = |share: f64| {
            let mut last = last.lock().unwrap();
            *last = last.max(share);
        };
        let got =
            precision_recall_with_progress(features(&samples), features(&references), 3, &note).unwrap();
        assert_eq!(*last.lock().unwrap(), 1.0);
        let reversed: Vec<f32> = samples.chunks_exact(4).rev().flatten().copied().collect();
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let again = one.install(|| precision_recall(features(&reversed), features(&references), 3)).unwrap();
        assert_eq!(got, again);
    }

    #[test]
    fn bad_input_is_refused() {
        let rows = gaussian(12, 1);
        let (wide, narrow) = (Features::new(&rows, 3).unwrap(), Features::new(&rows, 2).unwrap());
        let error = |a, b, k| precision_recall(a, b, k).unwrap_err().to_string();
        assert!(error(wide, narrow, 3).contains("rows of 3 numbers, got rows of 2"));
        assert!(error(wide, wide, 4).contains("at least 5 rows in the samples, got 4"));
        for k in [0, usize::MAX] {
            assert!(error(wide, wide, k).contains("neighbours from 1 to 1024"));
        }
    }
}
