//! Features: rows of numbers that an extractor computed, one row per image.

use crate::error::{MetricsError, check_range};

/// The longest rows accepted; a covariance of this size is 512 MiB.
pub(crate) const MAX_FEATURE_SIZE: usize = 8192;

/// A view of rows of finite numbers.
///
/// # Shapes
/// `(rows, size)`, row-major and contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Features<'a> {
    // Invariant: finite, and a multiple of `size` long; 1 <= size <= MAX_FEATURE_SIZE.
    values: &'a [f32],
    size: usize,
}

impl<'a> Features<'a> {
    /// Views `values` as rows of `size` numbers; there may be no row.
    ///
    /// # Errors
    /// [`MetricsError::Input`] unless `size` is in `1..=8192`, the rows are whole, and all numbers are finite; the
    /// first NaN or infinity is named.
    pub fn new(values: &'a [f32], size: usize) -> Result<Self, MetricsError> {
        check_size(size)?;
        if !values.len().is_multiple_of(size) {
            let len = values.len();
            return Err(MetricsError::Input(format!(
                "expected whole rows of {size} numbers, got {len} numbers"
            )));
        }
        check_finite("features", values, size)?;
        Ok(Self { values, size })
    }

    /// Numbers in a row.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.values.len() / self.size
    }

    /// All numbers, row by row.
    #[must_use]
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// The rows in order.
    pub fn rows(&self) -> std::slice::ChunksExact<'a, f32> {
        self.values.chunks_exact(self.size)
    }

    /// One row, which must exist.
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.size..(row + 1) * self.size]
    }
}

/// Checks the length of a row.
pub(crate) fn check_size(size: usize) -> Result<(), MetricsError> {
    check_range("numbers in a row", 1, MAX_FEATURE_SIZE as u64, size as u64)
}

/// Checks that all numbers of a matrix are finite.
pub(crate) fn check_finite<T: Copy + Into<f64>>(
    what: &str,
    values: &[T],
    size: usize,
) -> Result<(), MetricsError> {
    let Some(at) = values.iter().position(|it| !(*it).into().is_finite()) else { return Ok(()) };
    let (value, row, column): (f64, _, _) = (values[at].into(), at / size, at % size);
    Err(MetricsError::Input(format!(
        "expected finite numbers, got {value} in {what}, row {row}, column {column}"
    )))
}

/// Numbers for tests.
#[cfg(test)]
pub(crate) mod testing {
    /// Normal numbers from a seed: sums of twelve uniform ones.
    pub(crate) fn gaussian(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 24) as f32
        };
        (0..len).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_whole_and_finite() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, f32::NAN];
        let features = Features::new(&values[..4], 2).unwrap();
        assert_eq!((features.num_rows(), features.size()), (2, 2));
        assert_eq!(features.row(1), [3.0, 4.0]);
        assert_eq!(Features::new(&[], 7).unwrap().num_rows(), 0);
        let error = |values, size| Features::new(values, size).unwrap_err().to_string();
        assert_eq!(error(&values[..3], 2), "expected whole rows of 2 numbers, got 3 numbers");
        assert_eq!(error(&values, 3), "expected finite numbers, got NaN in features, row 1, column 2");
        for size in [0, MAX_FEATURE_SIZE + 1, usize::MAX] {
            assert!(error(&values, size).contains("numbers in a row from 1 to 8192"));
        }
    }
}
