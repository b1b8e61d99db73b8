//! Mean and covariance of features, as the Fréchet distance takes them.

use crate::features::check_size;
use crate::{Features, MetricsError, Moments};

/// How far mirrored entries may differ, relative to the largest variance: files hold rounded numbers.
const ASYMMETRY: f64 = 1e-6;

/// Mean and covariance of rows, in f64.
///
/// # Shapes
///
/// mean `(size)`, covariance `(size, size)`, row-major and symmetric, divided by rows - 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    // Invariant: finite; `covariance` is symmetric and `mean.len()` squared long.
    mean: Vec<f64>,
    covariance: Vec<f64>,
    num_rows: Option<u64>,
}

impl Statistics {
    /// Takes a mean and a covariance from elsewhere, such as the file of a reference.
    ///
    /// `num_rows` is how many rows they came from, where that is known. Entries that differ from their
    /// mirror images by rounding are averaged.
    ///
    /// # Errors
    ///
    /// [`MetricsError::OutOfRange`] for a size that is not in `1..=`[`MAX_FEATURE_SIZE`](crate::MAX_FEATURE_SIZE),
    /// [`MetricsError::NotSquare`], [`MetricsError::NotFinite`] or [`MetricsError::NotSymmetric`].
    pub fn new(
        mean: Vec<f64>,
        mut covariance: Vec<f64>,
        num_rows: Option<u64>,
    ) -> Result<Self, MetricsError> {
        let size = mean.len();
        check_size(size)?;
        check_square(size, &covariance)?;
        check_finite("the mean", &mean, size)?;
        check_finite("the covariance", &covariance, size)?;
        let largest = (0..size).map(|at| covariance[at * size + at].abs()).fold(0.0, f64::max);
        for row in 0..size {
            for column in row + 1..size {
                let (above, below) = (covariance[row * size + column], covariance[column * size + row]);
                if (above - below).abs() > ASYMMETRY * largest {
                    return Err(MetricsError::NotSymmetric { row, column, above, below });
                }
                let middle = above / 2.0 + below / 2.0;
                covariance[row * size + column] = middle;
                covariance[column * size + row] = middle;
            }
        }
        Ok(Self { mean, covariance, num_rows })
    }

    /// The statistics of rows that are all at hand; [`Moments`] takes them in parts.
    ///
    /// # Errors
    ///
    /// [`MetricsError::TooFewRows`] if there are fewer than two.
    pub fn of(features: Features<'_>) -> Result<Self, MetricsError> {
        let mut moments = Moments::new(features.size())?;
        moments.push(features)?;
        moments.finish()
    }

    /// For [`Moments`], which keeps the invariant itself.
    pub(crate) fn from_moments(mean: Vec<f64>, covariance: Vec<f64>, num_rows: u64) -> Self {
        Self { mean, covariance, num_rows: Some(num_rows) }
    }

    /// Numbers in a row.
    #[must_use]
    pub fn size(&self) -> usize {
        self.mean.len()
    }

    /// The mean row.
    #[must_use]
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// The covariance, row by row.
    #[must_use]
    pub fn covariance(&self) -> &[f64] {
        &self.covariance
    }

    /// How many rows were measured, where that is known.
    #[must_use]
    pub fn num_rows(&self) -> Option<u64> {
        self.num_rows
    }
}

pub(crate) fn check_square(size: usize, matrix: &[f64]) -> Result<(), MetricsError> {
    let expected = size * size;
    if matrix.len() == expected {
        return Ok(());
    }
    Err(MetricsError::NotSquare { size, expected, got: matrix.len() })
}

pub(crate) fn check_finite(what: &'static str, values: &[f64], size: usize) -> Result<(), MetricsError> {
    let Some(at) = values.iter().position(|it| !it.is_finite()) else { return Ok(()) };
    Err(MetricsError::NotFinite { what, row: at / size, column: at % size, value: values[at] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_covariance_is_refused() {
        let statistics =
            |mean: &[f64], covariance: &[f64]| Statistics::new(mean.into(), covariance.into(), None);
        assert!(matches!(statistics(&[], &[]), Err(MetricsError::OutOfRange { got: 0, .. })));
        assert!(matches!(
            statistics(&[0.0; 2], &[1.0; 3]),
            Err(MetricsError::NotSquare { expected: 4, got: 3, .. })
        ));
        assert!(matches!(
            statistics(&[0.0, f64::NAN], &[1.0; 4]),
            Err(MetricsError::NotFinite { what: "the mean", .. })
        ));
        let infinite = [1.0, 0.0, 0.0, f64::INFINITY];
        assert!(matches!(
            statistics(&[0.0; 2], &infinite),
            Err(MetricsError::NotFinite { what: "the covariance", row: 1, column: 1, .. })
        ));
        let skew = [1.0, 0.5, 0.4, 1.0];
        assert!(matches!(
            statistics(&[0.0; 2], &skew),
            Err(MetricsError::NotSymmetric { row: 0, column: 1, .. })
        ));
        let rounded = statistics(&[0.0; 2], &[1.0, 0.5, 0.5 + 1e-8, 1.0]).unwrap();
        assert_eq!(rounded.covariance()[1], rounded.covariance()[2]);
    }
}
