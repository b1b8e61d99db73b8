//! Rows of numbers that an extractor gave, one row an image.

use crate::MetricsError;
use crate::error::check_range;

/// The longest rows that are taken; a covariance of this size is 512 MiB.
pub const MAX_FEATURE_SIZE: usize = 8192;

/// A view of rows of finite numbers.
///
/// # Shapes
///
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
    ///
    /// [`MetricsError::OutOfRange`] unless `size` is in `1..=`[`MAX_FEATURE_SIZE`],
    /// [`MetricsError::NotWholeRows`], or [`MetricsError::NotFinite`] with the place of the first NaN or
    /// infinity.
    pub fn new(values: &'a [f32], size: usize) -> Result<Self, MetricsError> {
        check_size(size)?;
        if !values.len().is_multiple_of(size) {
            return Err(MetricsError::NotWholeRows { size, len: values.len() });
        }
        if let Some(at) = values.iter().position(|it| !it.is_finite()) {
            return Err(MetricsError::NotFinite {
                what: "features",
                row: at / size,
                column: at % size,
                value: values[at].into(),
            });
        }
        Ok(Self { values, size })
    }

    /// Numbers in a row.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many rows there are.
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

    /// One row; the caller knows that it is there.
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.size..(row + 1) * self.size]
    }
}

/// Checks the length of a row.
pub(crate) fn check_size(size: usize) -> Result<(), MetricsError> {
    check_range("numbers in a row", 1, MAX_FEATURE_SIZE as u64, size as u64)
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
        assert!(matches!(
            Features::new(&values[..3], 2),
            Err(MetricsError::NotWholeRows { size: 2, len: 3 })
        ));
        let error = Features::new(&values, 3).unwrap_err();
        assert!(matches!(error, MetricsError::NotFinite { row: 1, column: 2, .. }));
        assert_eq!(error.to_string(), "expected finite numbers, got NaN in features, row 1, column 2");
        for size in [0, MAX_FEATURE_SIZE + 1, usize::MAX] {
            assert!(matches!(Features::new(&values, size), Err(MetricsError::OutOfRange { .. })));
        }
    }
}
