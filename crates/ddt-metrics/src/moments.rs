//! Moments: mean and scatter of rows, streaming in f64.
//!
//! Rows are processed in blocks. A block is centred on its own mean, so that nothing cancels however far the
//! features are from zero, and merged with the earlier ones by
//!
//! ```text
//! d       = mean_b - mean_a
//! mean    = mean_a + d n_b / (n_a + n_b)
//! scatter = scatter_a + scatter_b + d dT n_a n_b / (n_a + n_b)
//! ```
//!
//! (Chan, Golub and LeVeque 1983). Blocks have one size however the rows arrive, and every entry sums them in
//! one order, so results depend neither on the size of batches nor on the number of threads.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::{
    error::{MetricsError, check_range, check_row_size, check_rows, overflow},
    features::{Features, check_size},
    statistics::Statistics,
};

/// Rows of a block.
const BLOCK: usize = 512;
/// Rows of the scatter that a thread computes at a time.
const STRIP: usize = 128;
/// Counts up to here are exact in f64.
const MAX_ROWS: u64 = 1 << 53;

/// Moments of rows, which may be pushed in parts; moments of different rows can be merged.
///
/// ```
/// use ddt_metrics::{Features, Moments};
///
/// let (mut all, mut part) = (Moments::new(2)?, Moments::new(2)?);
/// all.push(Features::new(&[0.0, 1.0, 2.0, 1.0], 2)?)?;
/// part.push(Features::new(&[4.0, 4.0], 2)?)?;
/// all.merge(&part)?;
/// let statistics = all.finish()?;
/// assert_eq!(statistics.mean(), [2.0, 2.0]);
/// for (got, expected) in statistics.covariance().iter().zip([4.0, 3.0, 3.0, 3.0]) {
///     assert!((got - expected).abs() < 1e-12);
/// }
/// # Ok::<(), ddt_metrics::MetricsError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Moments {
    size: usize,
    /// Rows in `mean` and `scatter`.
    num_rows: u64,
    mean: Vec<f64>,
    // Row-major; only `column <= row` is maintained.
    scatter: Vec<f64>,
    /// Rows waiting for a full block.
    pending: Vec<f32>,
}

impl Moments {
    /// Starts with no rows.
    ///
    /// # Errors
    /// [`MetricsError::Input`] unless `size` is in `1..=8192`.
    pub fn new(size: usize) -> Result<Self, MetricsError> {
        check_size(size)?;
        let (mean, scatter) = (vec![0.0; size], vec![0.0; size * size]);
        Ok(Self { size, num_rows: 0, mean, scatter, pending: Vec::new() })
    }

    /// Numbers in a row.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Rows so far.
    #[must_use]
    pub fn num_rows(&self) -> u64 {
        self.num_rows + (self.pending.len() / self.size) as u64
    }

    /// Adds rows.
    ///
    /// # Errors
    /// [`MetricsError::Input`] if they have another length; nothing has been added then.
    pub fn push(&mut self, features: Features<'_>) -> Result<(), MetricsError> {
        check_row_size("the rows to add", self.size, features.size())?;
        let block = BLOCK * self.size;
        let mut rest = features.values();
        while !rest.is_empty() {
            let (taken, more) = rest.split_at(rest.len().min(block - self.pending.len()));
            rest = more;
            if taken.len() == block {
                self.add_block(taken);
                continue;
            }
            self.pending.extend_from_slice(taken);
            if self.pending.len() == block {
                self.flush();
            }
        }
        Ok(())
    }

    /// Merges the moments of other rows.
    ///
    /// # Errors
    /// [`MetricsError::Input`] if its rows have another length, or for more than 2^53 rows; nothing has been merged
    /// then.
    pub fn merge(&mut self, other: &Moments) -> Result<(), MetricsError> {
        check_row_size("the moments to merge", self.size, other.size)?;
        check_range("rows", 0, MAX_ROWS, self.num_rows().saturating_add(other.num_rows()))?;
        self.flush();
        if other.num_rows > 0 {
            let shift = self.shift_mean(&other.mean, other.num_rows);
            let rows = self.scatter.par_chunks_mut(self.size).zip(other.scatter.par_chunks(self.size));
            rows.enumerate().for_each(|(row, (sums, more))| {
                for ((sum, more), column) in sums.iter_mut().zip(more).zip(&shift).take(row + 1) {
                    *sum += more + shift[row] * column;
                }
            });
        }
        if !other.pending.is_empty() {
            self.add_block(&other.pending);
        }
        Ok(())
    }

    /// Mean and covariance, which divides by rows - 1.
    ///
    /// # Errors
    /// [`MetricsError::Input`] for fewer than two rows; [`MetricsError::Numerical`] if merged sums are beyond f64.
    pub fn finish(mut self) -> Result<Statistics, MetricsError> {
        self.flush();
        check_rows("the features", 2, self.num_rows)?;
        let scale = (self.num_rows - 1) as f64;
        self.scatter.iter_mut().for_each(|it| *it /= scale);
        self.mirror();
        if self.mean.iter().chain(&self.scatter).any(|it| !it.is_finite()) {
            return Err(overflow("the features"));
        }
        Ok(Statistics::from_moments(self.mean, self.scatter, self.num_rows))
    }

    /// Adds the waiting rows.
    fn flush(&mut self) {
        if !self.pending.is_empty() {
            let mut pending = std::mem::take(&mut self.pending);
            self.add_block(&pending);
            pending.clear();
            self.pending = pending;
        }
    }

    fn add_block(&mut self, rows: &[f32]) {
        let size = self.size;
        let num_rows = rows.len() / size;
        let mut mean = vec![0.0; size];
        for row in rows.chunks_exact(size) {
            mean.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        mean.iter_mut().for_each(|it| *it /= num_rows as f64);
        // Merging the block with the rest is one more row of it.
        let mut centred = Vec::with_capacity(rows.len() + size);
        for row in rows.chunks_exact(size) {
            centred.extend(row.iter().zip(&mean).map(|(&x, mean)| f64::from(x) - mean));
        }
        centred.extend(self.shift_mean(&mean, num_rows as u64));
        let centred = MatRef::from_row_major_slice(&centred, num_rows + 1, size);
        self.scatter.par_chunks_mut(STRIP * size).enumerate().for_each(|(strip, sums)| {
            let (first, height) = (strip * STRIP, sums.len() / size);
            let sums = MatMut::from_row_major_slice_mut(sums, height, size);
            let rows = centred.subcols(first, height).transpose();
            let columns = centred.subcols(0, first + height);
            matmul(sums.subcols_mut(0, first + height), Accum::Add, rows, columns, 1.0, Par::Seq);
        });
    }

    /// Moves the mean to that of all rows; returns `d sqrt(n_a n_b / (n_a + n_b))`.
    fn shift_mean(&mut self, mean: &[f64], num_rows: u64) -> Vec<f64> {
        let (before, more) = (self.num_rows as f64, num_rows as f64);
        let share = more / (before + more);
        let weight = (before * share).sqrt();
        self.num_rows += num_rows;
        let pairs = self.mean.iter_mut().zip(mean);
        let shift = pairs.map(|(at, to)| {
            let shift = to - *at;
            *at += shift * share;
            shift * weight
        });
        shift.collect()
    }

    /// Copies the entries below the diagonal to above it.
    fn mirror(&mut self) {
        for row in 0..self.size {
            for column in row + 1..self.size {
                self.scatter[row * self.size + column] = self.scatter[column * self.size + row];
            }
        }
    }
}

impl Statistics {
    /// Statistics of rows that are all in memory; [`Moments`] takes them in parts.
    ///
    /// # Errors
    /// [`MetricsError::Input`] if there are fewer than two.
    pub fn of(features: Features<'_>) -> Result<Self, MetricsError> {
        let mut moments = Moments::new(features.size())?;
        moments.push(features)?;
        moments.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::testing::gaussian;

    /// Covariance in two passes, by its definition.
    fn two_passes(values: &[f32], size: usize) -> (Vec<f64>, Vec<f64>) {
        let rows: Vec<&[f32]> = values.chunks_exact(size).collect();
        let mean: Vec<f64> = (0..size)
            .map(|at| rows.iter().map(|row| f64::from(row[at])).sum::<f64>() / rows.len() as f64)
            .collect();
        let mut covariance = vec![0.0; size * size];
        for (at, sum) in covariance.iter_mut().enumerate() {
            let (i, j) = (at / size, at % size);
            let products =
                rows.iter().map(|row| (f64::from(row[i]) - mean[i]) * (f64::from(row[j]) - mean[j]));
            *sum = products.sum::<f64>() / (rows.len() - 1) as f64;
        }
        (mean, covariance)
    }

    fn close(got: &[f64], want: &[f64], tolerance: f64) {
        assert_eq!(got.len(), want.len());
        let largest = want.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= tolerance * largest, "{got} instead of {want}");
        }
    }

    #[test]
    fn equals_two_passes_far_from_zero() {
        for (num_rows, size) in [(2, 1), (511, 3), (513, 3), (1500, 7), (700, 150)] {
            let mut values = gaussian(num_rows * size, 7);
            values.iter_mut().for_each(|it| *it += 4096.0);
            let got = Statistics::of(Features::new(&values, size).unwrap()).unwrap();
            let (mean, covariance) = two_passes(&values, size);
            close(got.mean(), &mean, 1e-15);
            close(got.covariance(), &covariance, 1e-12);
        }
    }

    #[test]
    fn batches_and_threads_change_nothing() {
        let size = 130;
        let values = gaussian(1200 * size, 3);
        let features = |rows: std::ops::Range<usize>| {
            Features::new(&values[rows.start * size..rows.end * size], size).unwrap()
        };
        let whole = Statistics::of(features(0..1200)).unwrap();
        let mut moments = Moments::new(size).unwrap();
        for rows in [0..1, 1..512, 512..513, 513..1100, 1100..1100, 1100..1200] {
            moments.push(features(rows)).unwrap();
        }
        assert_eq!(moments.num_rows(), 1200);
        assert_eq!(moments.finish().unwrap(), whole);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one.install(|| Statistics::of(features(0..1200))).unwrap(), whole);
    }

    #[test]
    fn bad_sums_are_refused() {
        let mut moments = Moments::new(2).unwrap();
        let message = |error: MetricsError| error.to_string();
        assert!(message(Moments::new(0).unwrap_err()).contains("from 1 to 8192"));
        let error = message(moments.push(Features::new(&[1.0; 3], 3).unwrap()).unwrap_err());
        assert!(error.contains("rows of 2 numbers, got rows of 3 in the rows to add"), "{error}");
        let error = message(moments.merge(&Moments::new(3).unwrap()).unwrap_err());
        assert!(error.contains("in the moments to merge"), "{error}");
        moments.push(Features::new(&[1.0; 2], 2).unwrap()).unwrap();
        assert!(message(moments.clone().finish().unwrap_err()).contains("at least 2 rows"));
        let of = |num_rows| {
            let (mean, scatter) = (vec![0.0; 2], vec![1.7e308; 4]);
            Moments { size: 2, num_rows, mean, scatter, pending: Vec::new() }
        };
        let mut huge = of(2);
        huge.merge(&of(2)).unwrap();
        assert!(matches!(huge.finish(), Err(MetricsError::Numerical(_))));
        assert!(message(of(MAX_ROWS).merge(&moments).unwrap_err()).contains("rows from 0"));
    }
}
