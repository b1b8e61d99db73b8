//! What a reader of a number should know beside it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Something that does not keep a number from being had, but from being trusted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Warning {
    /// A covariance without an inverse, usually from fewer rows than numbers in a row.
    RankDeficient {
        /// Whose covariance.
        what: String,
        /// Eigenvalues above rounding.
        rank: usize,
        /// All eigenvalues.
        size: usize,
        /// Rows it came from, where that is known.
        num_rows: Option<u64>,
    },
    /// Eigenvalues below zero by more than rounding; they were taken for zero.
    NegativeEigenvalues {
        /// Whose covariance.
        what: String,
        /// The smallest.
        smallest: f64,
        /// The largest.
        largest: f64,
    },
    /// Rows of one class that follow each other far more often than in a random order.
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
        /// Rows that had been seen before.
        num_duplicates: u64,
        /// A row, from 0.
        first: u64,
        /// Another that equals it.
        again: u64,
    },
    /// Anything else that a program has to say.
    Note {
        /// What it is.
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
                 which were taken for zero: it was rounded, or is damaged"
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
