//! Inception Score, streaming.
//!
//! ```text
//! IS(split) = exp(mean over rows of KL(p(y | x) || p(y))) = exp(mean of sum_y p log p - sum_y m log m)
//! ```
//!
//! with `p` the softmax of a row's logits and `m` their mean over the split. The score is the mean over splits
//! of consecutive rows, a shorter last one included.

use serde::{Deserialize, Serialize};

use crate::{
    error::{MetricsError, check_range, check_row_size, check_rows},
    features::{Features, check_size},
};

/// Rows of a split in ADM's evaluation.
pub const SPLIT_SIZE: usize = 5000;

/// Inception Score over all splits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InceptionScore {
    /// Mean over splits, from 1 to the number of classes.
    pub mean: f64,
    /// Standard deviation over splits, dividing by their number.
    pub deviation: f64,
    /// The score of each split.
    pub splits: Vec<f64>,
}

/// Accumulates the Inception Score of logits in the order of the sample, in one row of sums.
#[derive(Debug, Clone)]
pub struct InceptionScoreAccumulator {
    split_size: usize,
    /// Rows of the current split.
    num_rows: usize,
    /// Sum of probabilities.
    probabilities: Vec<f64>,
    /// Sum of `sum_y p log p`.
    negative_entropy: f64,
    splits: Vec<f64>,
}

impl InceptionScoreAccumulator {
    /// Starts with no rows; splits have `split_size` consecutive rows.
    ///
    /// # Errors
    /// [`MetricsError::Input`] unless `num_classes` is in `1..=8192` and `split_size` at least 1.
    pub fn new(num_classes: usize, split_size: usize) -> Result<Self, MetricsError> {
        check_size(num_classes)?;
        check_range("rows in a split", 1, u64::MAX, split_size as u64)?;
        let probabilities = vec![0.0; num_classes];
        Ok(Self { split_size, num_rows: 0, probabilities, negative_entropy: 0.0, splits: Vec::new() })
    }

    /// Adds the logits of the next rows.
    ///
    /// # Errors
    /// [`MetricsError::Input`] for another number of classes; nothing has been added then.
    pub fn push(&mut self, logits: Features<'_>) -> Result<(), MetricsError> {
        check_row_size("the logits to add", self.probabilities.len(), logits.size())?;
        for row in logits.rows() {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let relative = |x: f32| f64::from(x) - f64::from(largest);
            let log_sum = row.iter().map(|&x| relative(x).exp()).sum::<f64>().ln();
            for (sum, &x) in self.probabilities.iter_mut().zip(row) {
                let log_p = relative(x) - log_sum;
                let p = log_p.exp();
                *sum += p;
                self.negative_entropy += p * log_p;
            }
            self.num_rows += 1;
            if self.num_rows == self.split_size {
                self.close_split();
            }
        }
        Ok(())
    }

    /// The score of all rows.
    ///
    /// # Errors
    /// [`MetricsError::Input`] if there was none.
    pub fn finish(mut self) -> Result<InceptionScore, MetricsError> {
        if self.num_rows > 0 {
            self.close_split();
        }
        check_rows("the logits", 1, self.splits.len() as u64)?;
        let num_splits = self.splits.len() as f64;
        let mean = self.splits.iter().sum::<f64>() / num_splits;
        let variance = self.splits.iter().map(|it| (it - mean) * (it - mean)).sum::<f64>() / num_splits;
        Ok(InceptionScore { mean, deviation: variance.sqrt(), splits: self.splits })
    }

    fn close_split(&mut self) {
        let num_rows = self.num_rows as f64;
        let mut divergence = self.negative_entropy / num_rows;
        for sum in &mut self.probabilities {
            let mean = *sum / num_rows;
            if mean > 0.0 {
                divergence -= mean * mean.ln();
            }
            *sum = 0.0;
        }
        self.splits.push(divergence.exp());
        (self.num_rows, self.negative_entropy) = (0, 0.0);
    }
}

/// Inception Score of logits that are all in memory.
///
/// # Errors
/// As [`InceptionScoreAccumulator`].
pub fn inception_score(logits: Features<'_>, split_size: usize) -> Result<InceptionScore, MetricsError> {
    let mut score = InceptionScoreAccumulator::new(logits.size(), split_size)?;
    score.push(logits)?;
    score.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that are certain of one class each.
    fn certain(classes: &[usize], num_classes: usize) -> Vec<f32> {
        let row = |&class: &usize| (0..num_classes).map(move |at| if at == class { 60.0 } else { -60.0 });
        classes.iter().flat_map(row).collect()
    }

    #[test]
    fn certain_rows_of_even_classes_score_their_number() {
        let logits = certain(&[0, 1, 2, 3, 0, 1, 2, 3], 4);
        let features = Features::new(&logits, 4).unwrap();
        assert!((inception_score(features, 8).unwrap().mean - 4.0).abs() < 1e-12);
        // Splits of 3, 3 and 2 rows: 3, 3 and 2 classes.
        let got = inception_score(features, 3).unwrap();
        assert_eq!(got.splits.len(), 3);
        assert!((got.mean - 8.0 / 3.0).abs() < 1e-12, "{got:?}");
        assert!((got.deviation - (2.0f64 / 9.0).sqrt()).abs() < 1e-12);
        let unsure = [0.0; 12];
        assert!((inception_score(Features::new(&unsure, 4).unwrap(), 5).unwrap().mean - 1.0).abs() < 1e-12);
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let logits = [f32::MAX, f32::MIN, f32::MIN, f32::MAX, 0.0, f32::MAX];
        let got = inception_score(Features::new(&logits, 2).unwrap(), 5000).unwrap();
        assert!(got.mean.is_finite() && got.mean > 1.8, "{got:?}");
    }

    #[test]
    fn bad_rows_are_refused() {
        assert!(InceptionScoreAccumulator::new(0, 1).is_err());
        assert!(InceptionScoreAccumulator::new(1, 0).is_err());
        let mut score = InceptionScoreAccumulator::new(3, 1).unwrap();
        let error = score.push(Features::new(&[0.0; 2], 2).unwrap()).unwrap_err().to_string();
        assert!(error.contains("rows of 3 numbers, got rows of 2"), "{error}");
        assert!(score.finish().unwrap_err().to_string().contains("at least 1 rows"));
    }
}
