//! Warnings: reasons not to trust a number, and the checks that find them.

use std::{
    collections::{
        HashMap,
        hash_map::{DefaultHasher, Entry},
    },
    fmt,
    hash::Hasher,
};

use serde::{Deserialize, Serialize};

use crate::features::Features;

/// A reason not to trust a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Warning {
    /// A singular covariance, usually from fewer rows than numbers in a row.
    RankDeficient {
        /// Whose covariance.
        what: String,
        /// Eigenvalues above rounding.
        rank: usize,
        /// All eigenvalues.
        size: usize,
        /// Rows it was computed from, where that is known.
        num_rows: Option<u64>,
    },
    /// Eigenvalues below zero by more than rounding; they count as zero.
    NegativeEigenvalues {
        /// Whose covariance.
        what: String,
        /// The smallest.
        smallest: f64,
        /// The largest.
        largest: f64,
    },
    /// Neighbouring rows of one class far more often than in a random order.
    SortedByClass {
        /// Share of neighbours with one class.
        share: f64,
        /// The same in a random order.
        expected: f64,
    },
    /// Rows that occur more than once.
    DuplicateRows {
        /// Whose rows.
        what: String,
        /// Rows that equal an earlier one.
        num_duplicates: u64,
        /// A row, from 0.
        first: u64,
        /// Another that equals it.
        again: u64,
    },
    /// Any other remark.
    Note {
        /// The remark.
        text: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RankDeficient { what, rank, size, num_rows } => {
                write!(f, "the covariance of the {what} has rank {rank} of {size}")?;
                match num_rows {
                    Some(num_rows) if *num_rows <= *size as u64 => {
                        write!(
                            f,
                            ": {num_rows} rows are too few, and the distance depends on how many there are"
                        )
                    }
                    _ => write!(f, ": some features are constant or depend on others"),
                }
            }
            Self::NegativeEigenvalues { what, smallest, largest } => write!(
                f,
                "the covariance of the {what} has eigenvalues down to {smallest:e} beside {largest:e}, \
                 which count as zero: it was rounded, or is damaged"
            ),
            Self::SortedByClass { share, expected } => write!(
                f,
                "{:.1} % of neighbouring rows have one class, {:.1} % in a random order: the rows are sorted by \
                 class, so a score over consecutive rows is far too low; write them in a random order",
                100.0 * share,
                100.0 * expected
            ),
            Self::DuplicateRows { what, num_duplicates, first, again } => write!(
                f,
                "{num_duplicates} of the {what} equal an earlier one, as row {again} equals row {first}"
            ),
            Self::Note { text } => f.write_str(text),
        }
    }
}

/// Search for equal rows, with 8 bytes of memory per row.
///
/// Rows are compared by a 64-bit hash; the probability of a collision among 50,000 different rows is 1e-10.
///
/// ```
/// use ddt_metrics::Duplicates;
///
/// let mut duplicates = Duplicates::new();
/// for image in [[1u8, 2], [3, 4], [1, 2]] {
///     duplicates.push(&image);
/// }
/// let warning = duplicates.warning("samples").map(|it| it.to_string());
/// assert_eq!(warning.as_deref(), Some("1 of the samples equal an earlier one, as row 2 equals row 0"));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Duplicates {
    /// First row of each hash.
    seen: HashMap<u64, u64>,
    num_rows: u64,
    num_duplicates: u64,
    example: Option<(u64, u64)>,
}

impl Duplicates {
    /// Starts with no rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the bytes of the next row.
    pub fn push(&mut self, row: &[u8]) {
        let mut hasher = DefaultHasher::new();
        hasher.write(row);
        match self.seen.entry(hasher.finish()) {
            Entry::Vacant(entry) => {
                entry.insert(self.num_rows);
            }
            Entry::Occupied(entry) => {
                self.num_duplicates += 1;
                self.example.get_or_insert((*entry.get(), self.num_rows));
            }
        }
        self.num_rows += 1;
    }

    /// A warning if a row occurred again; `what` names the rows.
    #[must_use]
    pub fn warning(&self, what: &str) -> Option<Warning> {
        let (first, again) = self.example?;
        let num_duplicates = self.num_duplicates;
        Some(Warning::DuplicateRows { what: what.to_owned(), num_duplicates, first, again })
    }
}

/// Standard deviations above a random order that are not chance.
const DEVIATIONS: f64 = 8.0;
/// Excess share of equal neighbours, above that of a random order, that matters.
const SHARE: f64 = 0.2;

/// Predicted class of each row: the index of its largest logit, the first of equal ones.
#[must_use]
pub fn predicted_classes(logits: Features<'_>) -> Vec<u32> {
    let class = |row: &[f32]| {
        let best = row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (at, &logit)| {
            if logit > best.1 { (at, logit) } else { best }
        });
        best.0 as u32
    };
    logits.rows().map(class).collect()
}

/// A warning if rows are sorted by class; `classes` may be predictions with errors.
///
/// A sample written class after class gives each split of the Inception Score only a few classes, and the score
/// falls from hundreds to tens. With `n_c` rows of class `c` among `n`, a random order has
///
/// ```text
/// sum_c n_c (n_c - 1) / n
/// ```
///
/// neighbours of one class.
#[must_use]
pub fn sorted_by_class(classes: &[u32]) -> Option<Warning> {
    let pairs = classes.len().checked_sub(1).filter(|pairs| *pairs > 0)? as f64;
    let mut counts: HashMap<u32, f64> = HashMap::new();
    classes.iter().for_each(|class| *counts.entry(*class).or_default() += 1.0);
    // Sorted to fix the order of the sum: a map has another order in every process.
    let mut counts: Vec<f64> = counts.into_values().collect();
    counts.sort_by(f64::total_cmp);
    let expected = counts.iter().map(|it| it * (it - 1.0)).sum::<f64>() / classes.len() as f64;
    let equal = classes.windows(2).filter(|pair| pair[0] == pair[1]).count() as f64;
    let more = equal - expected;
    let sorted = more > DEVIATIONS * expected.max(1.0).sqrt() && more > SHARE * pairs;
    sorted.then(|| Warning::SortedByClass { share: equal / pairs, expected: expected / pairs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_rows_are_not_duplicates() {
        let mut duplicates = Duplicates::new();
        for row in 0..1000u32 {
            duplicates.push(&row.to_le_bytes());
        }
        assert_eq!(duplicates.warning("samples"), None);
        duplicates.push(&7u32.to_le_bytes());
        duplicates.push(&7u32.to_le_bytes());
        assert!(matches!(
            duplicates.warning("samples"),
            Some(Warning::DuplicateRows { num_duplicates: 2, first: 7, again: 1000, .. })
        ));
    }

    /// Every row's class, and a third of them another.
    fn noisy(classes: impl Iterator<Item = u32>, num_classes: u32) -> Vec<u32> {
        let noise = |(at, class): (usize, u32)| {
            if at % 3 == 0 { (class + at as u32 * 7) % num_classes } else { class }
        };
        classes.enumerate().map(noise).collect()
    }

    #[test]
    fn sorted_rows_are_found_despite_errors_of_the_classifier() {
        let sorted = |num_classes: u32, each: u32| (0..num_classes * each).map(move |at| at / each);
        assert!(sorted_by_class(&sorted(1000, 50).collect::<Vec<_>>()).is_some());
        assert!(sorted_by_class(&noisy(sorted(1000, 50), 1000)).is_some());
        assert!(sorted_by_class(&noisy(sorted(10, 100), 10)).is_some());
    }

    #[test]
    fn mixed_rows_one_class_and_few_rows_are_not() {
        let mixed = |num_classes: u32, len: u32| (0..len).map(move |at| (at * 7919 + at / 13) % num_classes);
        assert_eq!(sorted_by_class(&mixed(1000, 50_000).collect::<Vec<_>>()), None);
        assert_eq!(sorted_by_class(&mixed(10, 500).collect::<Vec<_>>()), None);
        assert_eq!(sorted_by_class(&vec![3; 1000]), None);
        for few in [&[][..], &[1], &[1, 1], &[1, 1, 2, 2]] {
            assert_eq!(sorted_by_class(few), None);
        }
    }

    #[test]
    fn the_largest_logit_is_the_class() {
        let logits = [0.0, 2.0, 1.0, -5.0, -7.0, -5.0];
        assert_eq!(predicted_classes(Features::new(&logits, 3).unwrap()), [1, 0]);
    }
}
