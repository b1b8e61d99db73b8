//! Similarities and inner products between the self-conditions of two sampling steps.
//!
//! `1 - S_ij` is the error that the planner accepts by reusing the state of step `j` at step `i`
//! (arXiv:2504.05741, Sec. 3.4). The inner products give the error of any linear forecast.

use serde::{Deserialize, Serialize};

use crate::error::PlanError;
use crate::plan::check_num_steps;

/// Most steps of a similarity: a matrix of 32 MiB.
pub const MAX_SIMILARITY_STEPS: usize = 2048;

/// Largest deviation of a given matrix from symmetry, a unit diagonal and [-1, 1].
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

/// Mean inner product between the self-conditions of every two of `N` steps, per token (f64).
///
/// Symmetric, finite, positive on the diagonal, and no entry exceeds the Cauchy-Schwarz bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "LowerTriangle", into = "LowerTriangle")]
pub struct InnerProducts {
    num_steps: usize,
    // Invariant: num_steps squared, symmetric, and as the documentation says.
    values: Vec<f64>,
}

impl Similarity {
    /// A similarity measured elsewhere, row after row.
    ///
    /// Rounding of up to 1e-9 is removed: the entries below the diagonal are kept, clamped to [-1, 1] and
    /// mirrored, and the diagonal becomes 1.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless `num_steps` is in `1..=`[`MAX_SIMILARITY_STEPS`] and the matrix is square,
    /// symmetric, 1 on the diagonal and in [-1, 1].
    pub fn from_matrix(values: Vec<f64>, num_steps: usize) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_SIMILARITY_STEPS)?;
        check_len(num_steps * num_steps, values.len())?;
        for row in 0..num_steps {
            let value = values[row * num_steps + row];
            if value.is_nan() || (value - 1.0).abs() > TOLERANCE {
                let what = format!("similarity of step {row} with itself");
                return Err(PlanError::invalid(what, "1 (pass a similarity, not 1 minus it)", value));
            }
            for col in 0..row {
                let [lower, upper] = [values[row * num_steps + col], values[col * num_steps + row]];
                check_cosine(row, col, lower)?;
                check_cosine(col, row, upper)?;
                check_symmetric(row, col, lower, upper, TOLERANCE)?;
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

    /// The full matrix from cosines below the diagonal (`col < row`).
    pub(crate) fn mirror(num_steps: usize, lower: impl Fn(usize, usize) -> f64) -> Self {
        let entry = |row, col| if row == col { 1.0 } else { lower(row, col).clamp(-1.0, 1.0) };
        Self { num_steps, values: mirrored(num_steps, entry) }
    }
}

impl InnerProducts {
    /// Inner products measured elsewhere, row after row; the entries on and below the diagonal are kept.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless `num_steps` is in `1..=`[`MAX_SIMILARITY_STEPS`] and the matrix is square,
    /// symmetric, positive on the diagonal and within the Cauchy-Schwarz bound, all up to a relative 1e-9.
    pub fn from_matrix(values: Vec<f64>, num_steps: usize) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_SIMILARITY_STEPS)?;
        check_len(num_steps * num_steps, values.len())?;
        let at = |row: usize, col: usize| values[row * num_steps + col];
        for row in 0..num_steps {
            for col in 0..row {
                let scale = (at(row, row) * at(col, col)).sqrt();
                check_symmetric(row, col, at(row, col), at(col, row), TOLERANCE * scale)?;
            }
        }
        Self::mirror(num_steps, at)
    }

    /// Number of steps `N`.
    pub fn num_steps(&self) -> usize {
        self.num_steps
    }

    /// Inner product of every step with every step, row after row.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The full matrix from the entries on and below the diagonal (`col <= row`), checked.
    pub(crate) fn mirror(num_steps: usize, lower: impl Fn(usize, usize) -> f64) -> Result<Self, PlanError> {
        let values = mirrored(num_steps, lower);
        for row in 0..num_steps {
            let square = values[row * num_steps + row];
            // Within what products of f32 can be, so that no formula overflows.
            if !(square > 0.0 && square < 1e100) {
                let what = format!("mean square of the self-condition of step {row}");
                return Err(PlanError::invalid(what, "finite and above 0", square));
            }
            for col in 0..row {
                let value = values[row * num_steps + col];
                let bound = (square * values[col * num_steps + col]).sqrt();
                if value.is_nan() || value.abs() > bound * (1.0 + TOLERANCE) {
                    let what = format!("inner product of steps {row} and {col}");
                    return Err(PlanError::invalid(what, format!("at most {bound} in size"), value));
                }
            }
        }
        Ok(Self { num_steps, values })
    }
}

/// A symmetric matrix from its entries on and below the diagonal.
fn mirrored(num_steps: usize, lower: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let mut values = vec![0.0; num_steps * num_steps];
    for row in 0..num_steps {
        for col in 0..=row {
            let value = lower(row, col);
            values[row * num_steps + col] = value;
            values[col * num_steps + row] = value;
        }
    }
    values
}

/// Serialised form of a similarity, without its redundant half.
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
        check_len(num_steps * (num_steps - 1) / 2, below_diagonal.len())?;
        let at = |row: usize, col: usize| below_diagonal[row * row.saturating_sub(1) / 2 + col];
        for row in 0..num_steps {
            for col in 0..row {
                check_cosine(row, col, at(row, col))?;
            }
        }
        Ok(Self::mirror(num_steps, at))
    }
}

/// Serialised form of inner products, without their redundant half.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LowerTriangle {
    num_steps: usize,
    // Row 0, then row 1, ...: the entries up to the diagonal.
    lower_triangle: Vec<f64>,
}

impl From<InnerProducts> for LowerTriangle {
    fn from(InnerProducts { num_steps, values }: InnerProducts) -> Self {
        let rows = values.chunks_exact(num_steps).enumerate();
        Self { num_steps, lower_triangle: rows.flat_map(|(row, it)| it[..=row].iter().copied()).collect() }
    }
}

impl TryFrom<LowerTriangle> for InnerProducts {
    type Error = PlanError;

    fn try_from(LowerTriangle { num_steps, lower_triangle }: LowerTriangle) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_SIMILARITY_STEPS)?;
        check_len(num_steps * (num_steps + 1) / 2, lower_triangle.len())?;
        Self::mirror(num_steps, |row, col| lower_triangle[row * (row + 1) / 2 + col])
    }
}

fn check_len(expected: usize, got: usize) -> Result<(), PlanError> {
    if got == expected {
        return Ok(());
    }
    Err(PlanError::invalid("the number of entries of a matrix of steps by steps", expected, got))
}

fn check_cosine(row: usize, col: usize, value: f64) -> Result<(), PlanError> {
    // Written so that NaN fails too.
    if value.abs() <= 1.0 + TOLERANCE {
        return Ok(());
    }
    Err(PlanError::invalid(format!("similarity of steps {row} and {col}"), "in [-1, 1]", value))
}

fn check_symmetric(row: usize, col: usize, lower: f64, upper: f64, allowed: f64) -> Result<(), PlanError> {
    if (lower - upper).abs() <= allowed {
        return Ok(());
    }
    let what = format!("entry ({col}, {row}) of a symmetric matrix");
    Err(PlanError::invalid(what, format!("{lower} as at ({row}, {col})"), upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similarities_from_elsewhere_are_checked_and_cleaned() {
        let take = |values: [f64; 4]| Similarity::from_matrix(values.to_vec(), 2);
        let similarity = take([1.0 + 1e-12, 0.5, 0.5 + 1e-12, 1.0 - 1e-12]).unwrap();
        assert_eq!(similarity.values(), [1.0, 0.5 + 1e-12, 0.5 + 1e-12, 1.0]);
        assert_eq!(take([1.0, 1.0 + 1e-10, 1.0 + 1e-10, 1.0]).unwrap().values(), [1.0; 4]);
        let refused = |similarity: Result<Similarity, PlanError>, culprit: &str| {
            let message = similarity.unwrap_err().to_string();
            assert!(message.contains(culprit), "{message}");
        };
        refused(take([1.0, 0.5, 0.4, 1.0]), "entry (0, 1) of a symmetric matrix must be 0.4");
        refused(take([0.0, 0.5, 0.5, 0.0]), "step 0 with itself must be 1 (pass a similarity");
        refused(take([1.0, 0.5, 0.5, f64::NAN]), "step 1 with itself");
        for value in [1.1, -1.1, f64::NAN, f64::INFINITY] {
            refused(take([1.0, 0.0, value, 1.0]), "similarity of steps 1 and 0 must be in [-1, 1]");
            refused(take([1.0, value, 0.0, 1.0]), "similarity of steps 0 and 1 must be in [-1, 1]");
        }
        refused(Similarity::from_matrix(vec![1.0; 3], 2), "must be 4, got 3");
        refused(Similarity::from_matrix(vec![], 0), "number of steps");
    }

    #[test]
    fn inner_products_from_elsewhere_are_checked() {
        let take = |values: [f64; 4]| InnerProducts::from_matrix(values.to_vec(), 2);
        assert_eq!(take([4.0, 3.0, 3.0, 9.0]).unwrap().values(), [4.0, 3.0, 3.0, 9.0]);
        take([4.0, -6.0, -6.0, 9.0]).unwrap();
        for bad in [
            [4.0, 6.1, 6.1, 9.0],
            [4.0, 3.0, 2.0, 9.0],
            [0.0, 0.0, 0.0, 9.0],
            [-4.0, 0.0, 0.0, 9.0],
            [4.0, 3.0, 3.0, f64::NAN],
            [4.0, f64::NAN, f64::NAN, 9.0],
            [4.0, 3.0, 3.0, 1e300],
        ] {
            assert!(matches!(take(bad), Err(PlanError::Invalid { .. })), "{bad:?}");
        }
        assert!(InnerProducts::from_matrix(vec![1.0; 3], 2).is_err());
        assert!(InnerProducts::from_matrix(vec![], 0).is_err());
    }

    #[test]
    fn json_keeps_every_bit() {
        let values = vec![1.0, 0.1, 1.0 / 3.0, 0.1, 1.0, -0.7, 1.0 / 3.0, -0.7, 1.0];
        let similarity = Similarity::from_matrix(values.clone(), 3).unwrap();
        let json = serde_json::to_string(&similarity).unwrap();
        assert_eq!(serde_json::from_str::<Similarity>(&json).unwrap(), similarity);
        let products = InnerProducts::from_matrix(values, 3).unwrap();
        let json = serde_json::to_string(&products).unwrap();
        assert_eq!(serde_json::from_str::<InnerProducts>(&json).unwrap(), products);
        for json in [
            r#"{"num_steps": 3, "below_diagonal": [0.5, 0.5]}"#,
            r#"{"num_steps": 2, "below_diagonal": [1.5]}"#,
            r#"{"num_steps": 18446744073709551615, "below_diagonal": []}"#,
            r#"{"num_steps": 0, "below_diagonal": []}"#,
        ] {
            assert!(serde_json::from_str::<Similarity>(json).is_err(), "{json}");
        }
        for json in [
            r#"{"num_steps": 2, "lower_triangle": [1.0, 0.5]}"#,
            r#"{"num_steps": 2, "lower_triangle": [1.0, 1.5, 1.0]}"#,
            r#"{"num_steps": 0, "lower_triangle": []}"#,
        ] {
            assert!(serde_json::from_str::<InnerProducts>(json).is_err(), "{json}");
        }
    }
}
