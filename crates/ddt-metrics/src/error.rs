//! Errors of metrics.

use std::path::PathBuf;

/// Why a metric could not be computed, or a report not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// Input of which no metric can be computed: sizes that do not fit, too few rows, NaN.
    #[error("{0}")]
    Input(String),
    /// Numbers whose result is beyond f64, or a decomposition that did not converge.
    #[error("{0}")]
    Numerical(String),
    /// A file that is not a report.
    #[error("{}: {problem}", path.display())]
    Report {
        /// The file.
        path: PathBuf,
        /// The expected and the actual value.
        problem: String,
    },
}

/// Checks that a count is in a range.
pub(crate) fn check_range(what: &str, min: u64, max: u64, got: u64) -> Result<(), MetricsError> {
    if (min..=max).contains(&got) {
        return Ok(());
    }
    Err(MetricsError::Input(format!("expected {what} from {min} to {max}, got {got}")))
}

/// Checks that two inputs have rows of one length.
pub(crate) fn check_row_size(what: &str, expected: usize, got: usize) -> Result<(), MetricsError> {
    if expected == got {
        return Ok(());
    }
    Err(MetricsError::Input(format!(
        "expected rows of {expected} numbers, got rows of {got} in {what}; use one extractor for both sides"
    )))
}

/// Checks that there are enough rows.
pub(crate) fn check_rows(what: &str, expected: u64, got: u64) -> Result<(), MetricsError> {
    if got >= expected {
        return Ok(());
    }
    Err(MetricsError::Input(format!("expected at least {expected} rows in {what}, got {got}")))
}

/// Numbers whose squares or sums are beyond f64.
pub(crate) fn overflow(what: &str) -> MetricsError {
    MetricsError::Numerical(format!("the numbers in {what} are too large: their squares overflow"))
}
