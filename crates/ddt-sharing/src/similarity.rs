//! How alike the self-conditions of two sampling steps are.
//!
//! `1 - S_ij` is the error that the planner accepts by using the state of step `j` at step `i`
//! (arXiv:2504.05741, Sec. 3.4).

use serde::{Deserialize, Serialize};

use crate::PlanError;
use crate::plan::check_num_steps;

/// Most steps a similarity can have: a matrix of 32 MiB.
pub const MAX_SIMILARITY_STEPS: usize = 2048;

/// How far a matrix from elsewhere may be from symmetric, a unit diagonal and [-1, 1].
const TOLERANCE: f64 = 1e-9;

/// Mean cosine between the self-conditions of every two of `N` steps (unitless, f64).
///
/// Symmetric, 1 on the diagonal, entries in [-1, 1].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "BelowDiagonal", into = "BelowDiagonal")]
pub struct Similarity {
    num_steps: usize,
    // Invariant: num_steps squared, finite, symmetric, diagonal exactly 1, entries in [-1, 1].
    values: Vec<f64>,
}

impl Similarity {
    /// Takes a similarity measured elsewhere, row after row.
    ///
    /// Rounding of up to 1e-9 is forgiven and removed: the entries below the diagonal are kept, clamped to
    /// [-1, 1] and mirrored, and the diagonal becomes 1.
    ///
    /// # Errors
    ///
    /// [`PlanError::NumSteps`] unless `num_steps` is in `1..=`[`MAX_SIMILARITY_STEPS`];
    /// [`PlanError::NotSquare`], [`PlanError::NotACosine`], [`PlanError::NotSymmetric`] or
    /// [`PlanError::Diagonal`] for a matrix that is no similarity.
    pub fn from_matrix(values: Vec<f64>, num_steps: usize) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_SIMILARITY_STEPS)?;
        check_len(num_steps, num_steps * num_steps, values.len())?;
        for row in 0..num_steps {
            let value = values[row * num_steps + row];
            if value.is_nan() || (value - 1.0).abs() > TOLERANCE {
                return Err(PlanError::Diagonal { step: row, value });
            }
            for col in 0..row {
                let [lower, upper] = [values[row * num_steps + col], values[col * num_steps + row]];
                check_cosine(row, col, lower)?;
                check_cosine(col, row, upper)?;
                if (lower - upper).abs() > TOLERANCE {
                    return Err(PlanError::NotSymmetric { row, col, lower, upper });
                }
            }
        }
        Ok(Self::mirror(num_steps, |row, col| values[row * num_steps + col]))
    }

    /// Number of steps `N`.
    pub fn num_steps(&self) -> usize {
        self.num_steps
    }

    /// Similarity of every step with every step, row after row.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Similarity of `step` with every step, or `None` beyond the last.
    pub fn row(&self, step: usize) -> Option<&[f64]> {
        self.values.chunks_exact(self.num_steps).nth(step)
    }

    /// Similarity of steps `i` and `j`, or `None` beyond the last.
    pub fn similarity(&self, i: usize, j: usize) -> Option<f64> {
        self.row(i)?.get(j).copied()
    }

    /// Error of using the self-condition of one step at the other, `e_ij = 1 - S_ij`, in [0, 2].
    pub fn dissimilarity(&self, i: usize, j: usize) -> Option<f64> {
        Some(1.0 - self.similarity(i, j)?)
    }

    /// Builds the full matrix from cosines below the diagonal (`col < row`).
    pub(crate) fn mirror(num_steps: usize, lower: impl Fn(usize, usize) -> f64) -> Self {
        let mut values = vec![1.0; num_steps * num_steps];
        for row in 0..num_steps {
            for col in 0..row {
                let value = lower(row, col).clamp(-1.0, 1.0);
                values[row * num_steps + col] = value;
                values[col * num_steps + row] = value;
            }
        }
        Self { num_steps, values }
    }
}

/// A similarity without its redundant half, as it is serialised.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BelowDiagonal {
    num_steps: usize,
    // Row 1, then row 2, ...: the entries left of the diagonal.
    below_diagonal: Vec<f64>,
}

impl From<Similarity> for BelowDiagonal {
    fn from(Similarity { num_steps, values }: Similarity) -> Self {
        let rows = values.chunks_exact(num_steps).enumerate();
        Self { num_steps, below_diagonal: rows.flat_map(|(row, it)| it[..row].iter().copied()).collect() }
    }
}

impl TryFrom<BelowDiagonal> for Similarity {
    type Error = PlanError;

    fn try_from(BelowDiagonal { num_steps, below_diagonal }: BelowDiagonal) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_SIMILARITY_STEPS)?;
        check_len(num_steps, num_steps * (num_steps - 1) / 2, below_diagonal.len())?;
        let at = |row: usize, col: usize| below_diagonal[row * row.saturating_sub(1) / 2 + col];
        for row in 0..num_steps {
            for col in 0..row {
                check_cosine(row, col, at(row, col))?;
            }
        }
        Ok(Self::mirror(num_steps, at))
    }
}

fn check_len(num_steps: usize, expected: usize, got: usize) -> Result<(), PlanError> {
    if got == expected { Ok(()) } else { Err(PlanError::NotSquare { num_steps, expected, got }) }
}

fn check_cosine(row: usize, col: usize, value: f64) -> Result<(), PlanError> {
    // Written so that NaN fails too.
    if value.abs() <= 1.0 + TOLERANCE { Ok(()) } else { Err(PlanError::NotACosine { row, col, value }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_from_elsewhere_are_checked_and_cleaned() {
        let take = |values: [f64; 4]| Similarity::from_matrix(values.to_vec(), 2);
        let similarity = take([1.0 + 1e-12, 0.5, 0.5 + 1e-12, 1.0 - 1e-12]).unwrap();
        assert_eq!(similarity.values(), [1.0, 0.5 + 1e-12, 0.5 + 1e-12, 1.0]);
        assert_eq!(take([1.0, 1.0 + 1e-10, 1.0 + 1e-10, 1.0]).unwrap().values(), [1.0; 4]);
        assert!(matches!(take([1.0, 0.5, 0.4, 1.0]), Err(PlanError::NotSymmetric { row: 1, col: 0, .. })));
        assert!(matches!(take([0.0, 0.5, 0.5, 0.0]), Err(PlanError::Diagonal { step: 0, .. })));
        assert!(matches!(take([1.0, 0.5, 0.5, f64::NAN]), Err(PlanError::Diagonal { step: 1, .. })));
        for value in [1.1, -1.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(
                take([1.0, 0.0, value, 1.0]),
                Err(PlanError::NotACosine { row: 1, col: 0, .. })
            ));
            assert!(matches!(
                take([1.0, value, 0.0, 1.0]),
                Err(PlanError::NotACosine { row: 0, col: 1, .. })
            ));
        }
        let short = Similarity::from_matrix(vec![1.0; 3], 2);
        assert!(matches!(short, Err(PlanError::NotSquare { expected: 4, got: 3, .. })));
        assert!(matches!(Similarity::from_matrix(vec![], 0), Err(PlanError::NumSteps { .. })));
    }

    #[test]
    fn json_keeps_every_bit() {
        let similarity =
            Similarity::from_matrix(vec![1.0, 0.1, 1.0 / 3.0, 0.1, 1.0, -0.7, 1.0 / 3.0, -0.7, 1.0], 3)
                .unwrap();
        let json = serde_json::to_string(&similarity).unwrap();
        assert_eq!(serde_json::from_str::<Similarity>(&json).unwrap(), similarity);
        for json in [
            r#"{"num_steps": 3, "below_diagonal": [0.5, 0.5]}"#,
            r#"{"num_steps": 2, "below_diagonal": [1.5]}"#,
            r#"{"num_steps": 18446744073709551615, "below_diagonal": []}"#,
            r#"{"num_steps": 0, "below_diagonal": []}"#,
        ] {
            assert!(serde_json::from_str::<Similarity>(json).is_err(), "{json}");
        }
    }
}
