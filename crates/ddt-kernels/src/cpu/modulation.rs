//! Walking rows together with the modulation rows that apply to them.

use std::ops::Range;

use super::element::Element;
use super::rows::{Rows, Task};
use crate::modulation::Modulation;

impl Modulation {
    /// The modulation row of a row.
    #[inline(always)]
    pub(super) fn source(self, rows: &Rows, row: usize) -> usize {
        match self {
            Self::PerImage => rows.image(row),
            Self::PerToken => row,
        }
    }

    /// Sums that a backward pass keeps for `task`: one per piece, or one per row.
    pub(super) fn partials_of(self, task: &Task) -> usize {
        match self {
            Self::PerImage => task.pieces.len(),
            Self::PerToken => task.rows.len(),
        }
    }

    /// Sums that a backward pass keeps for the whole tensor.
    pub(super) fn partials(self, rows: &Rows) -> usize {
        match self {
            Self::PerImage => rows.pieces(),
            Self::PerToken => rows.count(),
        }
    }

    /// The rows of `task`, counted from its first, grouped by the modulation row that they share.
    pub(super) fn groups(self, rows: &Rows, task: &Task) -> impl Iterator<Item = (usize, Range<usize>)> {
        let first = task.rows.start;
        let source = self.source(rows, first);
        let count = self.partials_of(task);
        let each = task.rows.len() / count.max(1);
        (0..count).map(move |group| (source + group, group * each..(group + 1) * each))
    }

    /// From the kept sums to the gradient of the modulation.
    pub(super) fn gradient<T: Element>(self, rows: &Rows, partial: Vec<f32>, width: usize) -> Vec<T> {
        match self {
            Self::PerImage => rows.sum_pieces(partial, width),
            Self::PerToken => T::collect(partial),
        }
    }
}
