//! What can be wrong with what is to be measured.

use std::path::PathBuf;

use crate::report::MAX_REPORT_BYTES;

/// Why a number could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// Numbers that do not divide into rows.
    #[error("expected whole rows of {size} numbers, got {len} numbers")]
    NotWholeRows {
        /// Numbers in a row.
        size: usize,
        /// Numbers in all.
        len: usize,
    },
    /// Two inputs whose rows differ in length.
    #[error(
        "expected rows of {expected} numbers, got rows of {got} in {what}; use one extractor for both sides"
    )]
    RowSize {
        /// Which input differs.
        what: &'static str,
        /// Numbers in a row of the other.
        expected: usize,
        /// Numbers in a row of this one.
        got: usize,
    },
    /// A count or size out of its range.
    #[error("expected {what} from {min} to {max}, got {got}")]
    OutOfRange {
        /// What is counted.
        what: &'static str,
        /// The smallest that is possible.
        min: u64,
        /// The largest that is possible.
        max: u64,
        /// What was given.
        got: u64,
    },
    /// A NaN or an infinity.
    #[error("expected finite numbers, got {value} in {what}, row {row}, column {column}")]
    NotFinite {
        /// Which input it stands in.
        what: &'static str,
        /// The row, from 0.
        row: usize,
        /// The column, from 0.
        column: usize,
        /// The number.
        value: f64,
    },
    /// Too few rows for the metric.
    #[error("expected at least {expected} rows in {what}, got {got}")]
    TooFewRows {
        /// Which input is short.
        what: &'static str,
        /// Rows needed.
        expected: u64,
        /// Rows there.
        got: u64,
    },
    /// A covariance of another length than the square of its mean's.
    #[error("expected a covariance of {expected} numbers, the square of the mean's {size}, got {got}")]
    NotSquare {
        /// Length of the mean.
        size: usize,
        /// Its square.
        expected: usize,
        /// Numbers in the covariance.
        got: usize,
    },
    /// A covariance that is none.
    #[error(
        "expected a symmetric covariance, got {above} above and {below} below the diagonal at row {row}, column {column}"
    )]
    NotSymmetric {
        /// The row, from 0.
        row: usize,
        /// The column, from 0.
        column: usize,
        /// The entry at row and column.
        above: f64,
        /// Its mirror image.
        below: f64,
    },
    /// A covariance with a variance far below zero.
    #[error(
        "expected a covariance without negative eigenvalues, got {smallest:e} beside {largest:e} in {what}"
    )]
    NotPositive {
        /// Whose covariance.
        what: &'static str,
        /// Its smallest eigenvalue.
        smallest: f64,
        /// Its largest eigenvalue.
        largest: f64,
    },
    /// Eigenvalues or singular values that did not converge.
    #[error("the decomposition of the covariance of {what} did not converge")]
    NoConvergence {
        /// Whose covariance.
        what: &'static str,
    },
    /// Numbers so large that the result is none.
    #[error("the numbers in {what} are too large: their squares overflow")]
    Overflow {
        /// Which input.
        what: &'static str,
    },
    /// A report that cannot be read or written.
    #[error("cannot access the report {path}")]
    ReportFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is no report.
    #[error("expected a report as written by evaluate in {path}")]
    ReportFormat {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A file too large for a report.
    #[error("expected a report of at most {MAX_REPORT_BYTES} bytes, got {got} in {path}")]
    ReportSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        got: u64,
    },
    /// A report of another version.
    #[error("expected a report of version {expected}, got version {got} in {path}")]
    ReportVersion {
        /// The file.
        path: PathBuf,
        /// The version that this program writes.
        expected: u32,
        /// The version of the file.
        got: u32,
    },
    /// A protocol of unknown name.
    #[error("expected one of the protocols {known}, got {got:?}")]
    UnknownProtocol {
        /// The known names.
        known: String,
        /// What was asked for.
        got: String,
    },
}

/// Checks that a count lies in a range.
pub(crate) fn check_range(what: &'static str, min: u64, max: u64, got: u64) -> Result<(), MetricsError> {
    if (min..=max).contains(&got) { Ok(()) } else { Err(MetricsError::OutOfRange { what, min, max, got }) }
}

/// Checks that two inputs have rows of one length.
pub(crate) fn check_row_size(what: &'static str, expected: usize, got: usize) -> Result<(), MetricsError> {
    if expected == got { Ok(()) } else { Err(MetricsError::RowSize { what, expected, got }) }
}
