//! Mean and covariance of features, the input of the Fréchet distance.

use crate::{
    error::MetricsError,
    features::{check_finite, check_size},
};

/// Largest difference of mirrored entries, relative to the largest variance: files hold rounded numbers.
const ASYMMETRY: f64 = 1e-6;

/// Mean and covariance of rows, in f64.
///
/// # Shapes
/// mean `(size)`, covariance `(size, size)`, row-major and symmetric, divided by rows - 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    // Invariant: finite; `covariance` is symmetric and `mean.len()` squared long.
    mean: Vec<f64>,
    covariance: Vec<f64>,
    num_rows: Option<u64>,
}

impl Statistics {
    /// A mean and a covariance computed elsewhere, such as those in a reference file.
    ///
    /// `num_rows` is the number of rows they came from, where that is known. Entries that differ from their
    /// mirror images by rounding are averaged.
    ///
    /// # Errors
    /// [`MetricsError::Input`] unless the size is in `1..=8192`, the covariance is square and symmetric, and all
    /// numbers are finite.
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
                    return Err(MetricsError::Input(format!(
                        "expected a symmetric covariance, got {above} above and {below} below the diagonal at row {row}, column {column}"
                    )));
                }
                let middle = above / 2.0 + below / 2.0;
                covariance[row * size + column] = middle;
                covariance[column * size + row] = middle;
            }
        }
        Ok(Self { mean, covariance, num_rows })
    }

    /// Statistics without a check, for [`Moments`](crate::Moments), which keeps the invariant itself.
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

    /// Number of rows measured, where that is known.
    #[must_use]
    pub fn num_rows(&self) -> Option<u64> {
        self.num_rows
    }
}

fn check_square(size: usize, matrix: &[f64]) -> Result<(), MetricsError> {
    let expected = size * size;
    if matrix.len() == expected {
        return Ok(());
    }
    let got = matrix.len();
    Err(MetricsError::Input(format!(
        "expected a covariance of {expected} numbers, the square of the mean's {size}, got {got}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_that_are_not_covariances_are_refused() {
        let statistics =
            |mean: &[f64], covariance: &[f64]| Statistics::new(mean.into(), covariance.into(), None);
        for (mean, covariance, part) in [
            (&[][..], &[][..], "from 1 to 8192, got 0"),
            (&[0.0; 2], &[1.0; 3], "of 4 numbers, the square of the mean's 2, got 3"),
            (&[0.0, f64::NAN], &[1.0; 4], "NaN in the mean"),
            (&[0.0; 2], &[1.0, 0.0, 0.0, f64::INFINITY], "inf in the covariance, row 1, column 1"),
            (&[0.0; 2], &[1.0, 0.5, 0.4, 1.0], "0.5 above and 0.4 below the diagonal at row 0, column 1"),
        ] {
            let message = statistics(mean, covariance).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        let rounded = statistics(&[0.0; 2], &[1.0, 0.5, 0.5 + 1e-8, 1.0]).unwrap();
        assert_eq!(rounded.covariance()[1], rounded.covariance()[2]);
    }
}
