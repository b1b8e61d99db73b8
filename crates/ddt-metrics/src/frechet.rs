//! Fréchet distance between two normal distributions.
//!
//! ```text
//! d = |mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr sqrt(sqrt(A) B sqrt(A))
//! ```
//!
//! With `A = Ua Da UaT` the root's trace is the sum of the singular values of `sqrt(Da) UaT Ub sqrt(Db)`,
//! since that matrix times its transpose is `sqrt(A) B sqrt(A)` in the basis `Ua`. Taking singular values
//! instead of roots of eigenvalues keeps small ones exact to rounding, where a square root would turn
//! rounding of 1e-16 into 1e-8. A singular covariance gives neither NaN nor a complex number.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::matmul::matmul;
use faer::linalg::{evd, svd};
use faer::{Accum, Mat, MatRef, Par};
use serde::{Deserialize, Serialize};

use crate::{
    error::{MetricsError, check_row_size, overflow},
    statistics::Statistics,
    warnings::Warning,
};

/// Eigenvalues below minus this share of the largest are not rounding of a file, but damage.
const DAMAGE: f64 = 1e-3;

/// A Fréchet distance and its parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrechetDistance {
    /// The squared distance, as FID is reported; at least 0.
    pub distance: f64,
    /// Contribution of the means.
    pub mean_term: f64,
    /// Contribution of the covariances; rounding may leave it just below 0.
    pub covariance_term: f64,
    /// Reasons not to trust it.
    pub warnings: Vec<Warning>,
}

/// The Fréchet distance of two sets of features: FID on Inception's pool features, sFID on its spatial ones.
///
/// Symmetric to rounding, and independent of the number of threads.
///
/// ```
/// use ddt_metrics::{Statistics, frechet_distance};
///
/// let samples = Statistics::new(vec![0.0, 3.0], vec![4.0, 0.0, 0.0, 1.0], None)?;
/// let references = Statistics::new(vec![0.0, 0.0], vec![9.0, 0.0, 0.0, 1.0], None)?;
/// // 3^2 for the means, (2 - 3)^2 for the first spread.
/// assert!((frechet_distance(&samples, &references)?.distance - 10.0).abs() < 1e-12);
/// # Ok::<(), ddt_metrics::MetricsError>(())
/// ```
///
/// # Errors
/// [`MetricsError::Input`] for features of different extractors or a matrix that is not a covariance,
/// [`MetricsError::Numerical`] for an overflow or a decomposition that does not converge.
pub fn frechet_distance(
    samples: &Statistics,
    references: &Statistics,
) -> Result<FrechetDistance, MetricsError> {
    check_row_size("the references", samples.size(), references.size())?;
    let size = samples.size();
    let means = samples.mean().iter().zip(references.mean());
    let mean_term: f64 = means.map(|(a, b)| (a - b) * (a - b)).sum();
    // Only numbers near the ends of f64 need it; a power of two changes no digit.
    let entries = samples.covariance().iter().chain(references.covariance());
    let largest = entries.map(|it| it.abs()).fold(0.0, f64::max);
    let scale = if largest > 0.0 { largest.log2().ceil().clamp(-1000.0, 1000.0).exp2() } else { 1.0 };

    let (left, right) =
        rayon::join(|| Root::new("samples", samples, scale), || Root::new("references", references, scale));
    let (left, right) = (left?, right?);
    let mut product = Mat::<f64>::zeros(left.columns.ncols(), right.columns.ncols());
    matmul(&mut product, Accum::Replace, left.columns.transpose(), &right.columns, 1.0, Par::Seq);
    let root: f64 = singular_values(product.as_ref())?.iter().sum();
    let traces: f64 =
        (0..size).map(|at| variance(samples, at) / scale + variance(references, at) / scale).sum();
    let covariance_term = (traces - 2.0 * root) * scale;

    let distance = (mean_term + covariance_term).max(0.0);
    // `max` drops a NaN, so the sum itself is checked.
    if !(mean_term + covariance_term).is_finite() {
        return Err(overflow("the statistics"));
    }
    let warnings = [left.warnings, right.warnings].concat();
    Ok(FrechetDistance { distance, mean_term, covariance_term, warnings })
}

fn variance(statistics: &Statistics, at: usize) -> f64 {
    statistics.covariance()[at * (statistics.size() + 1)]
}

/// A factor of a covariance: `columns columnsT` is the covariance over `scale`.
struct Root {
    // (size, rank)
    columns: Mat<f64>,
    warnings: Vec<Warning>,
}

impl Root {
    fn new(what: &'static str, statistics: &Statistics, scale: f64) -> Result<Self, MetricsError> {
        let size = statistics.size();
        let (values, mut columns) = eigen(what, statistics, scale)?;
        // In rising order.
        let (smallest, largest) = (values[0], values[size - 1]);
        let rounding = size as f64 * f64::EPSILON * largest.abs();
        if !smallest.is_finite() || !largest.is_finite() {
            return Err(overflow(what));
        }
        if smallest < -DAMAGE * largest.abs() {
            let (smallest, largest) = (smallest * scale, largest * scale);
            return Err(MetricsError::Input(format!(
                "expected a covariance without negative eigenvalues, got {smallest:e} beside {largest:e} in {what}"
            )));
        }
        let zeros = values.iter().take_while(|it| **it <= rounding).count();
        for (at, value) in values.iter().enumerate().skip(zeros) {
            let root = value.sqrt();
            columns.as_mut().col_mut(at).iter_mut().for_each(|it| *it *= root);
        }
        let mut warnings = Vec::new();
        if smallest < -rounding {
            let (smallest, largest) = (smallest * scale, largest * scale);
            warnings.push(Warning::NegativeEigenvalues { what: what.to_owned(), smallest, largest });
        }
        if zeros > 0 {
            let (rank, num_rows) = (size - zeros, statistics.num_rows());
            warnings.push(Warning::RankDeficient { what: what.to_owned(), rank, size, num_rows });
        }
        Ok(Self { columns: columns.as_ref().subcols(zeros, size - zeros).to_owned(), warnings })
    }
}

/// Eigenvalues of the covariance over `scale` in rising order, and their vectors in columns.
fn eigen(what: &'static str, of: &Statistics, scale: f64) -> Result<(Vec<f64>, Mat<f64>), MetricsError> {
    let size = of.size();
    let scaled: Vec<f64> = of.covariance().iter().map(|it| it / scale).collect();
    if scaled.iter().any(|it| !it.is_finite()) {
        return Err(overflow(what));
    }
    let (mut values, mut vectors) = (Diag::<f64>::zeros(size), Mat::<f64>::zeros(size, size));
    let need = evd::self_adjoint_evd_scratch::<f64>(
        size,
        evd::ComputeEigenvectors::Yes,
        Par::Seq,
        Default::default(),
    );
    evd::self_adjoint_evd(
        MatRef::from_column_major_slice(&scaled, size, size),
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(need)),
        Default::default(),
    )
    .map_err(|_| no_convergence(what))?;
    Ok((values.column_vector().iter().copied().collect(), vectors))
}

fn no_convergence(what: &str) -> MetricsError {
    MetricsError::Numerical(format!("the decomposition of the covariance of {what} did not converge"))
}

/// Singular values, in any order.
fn singular_values(matrix: MatRef<'_, f64>) -> Result<Vec<f64>, MetricsError> {
    let (rows, columns) = matrix.shape();
    let mut values = Diag::<f64>::zeros(rows.min(columns));
    let need = svd::svd_scratch::<f64>(
        rows,
        columns,
        svd::ComputeSvdVectors::No,
        svd::ComputeSvdVectors::No,
        Par::Seq,
        Default::default(),
    );
    svd::svd(
        matrix,
        values.as_mut(),
        None,
        None,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(need)),
        Default::default(),
    )
    .map_err(|_| no_convergence("the product of the roots"))?;
    Ok(values.column_vector().iter().copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{Features, testing::gaussian};

    fn diagonal_of(variances: &[f64]) -> Vec<f64> {
        let size = variances.len();
        let mut matrix = vec![0.0; size * size];
        variances.iter().enumerate().for_each(|(at, it)| matrix[at * (size + 1)] = *it);
        matrix
    }

    fn statistics(mean: &[f64], variances: &[f64]) -> Statistics {
        Statistics::new(mean.into(), diagonal_of(variances), None).unwrap()
    }

    #[test]
    fn diagonal_covariances_have_a_closed_form() {
        let a = statistics(&[1.0, -2.0, 0.5], &[4.0, 0.25, 1e-6]);
        let b = statistics(&[0.0, 1.0, 0.5], &[1.0, 9.0, 4e-6]);
        let got = frechet_distance(&a, &b).unwrap();
        let spread = 1.0 + 2.5 * 2.5 + 1e-3 * 1e-3;
        assert!((got.distance - (10.0 + spread)).abs() < 1e-13, "{got:?}");
        assert!((got.mean_term - 10.0).abs() < 1e-13 && got.warnings.is_empty());
    }

    #[test]
    fn nothing_is_far_from_itself() {
        for (num_rows, size) in [(2, 1), (40, 64), (300, 64), (3, 200)] {
            let values: Vec<f32> = gaussian(num_rows * size, 5)
                .iter()
                .enumerate()
                // Spreads from 30 to 3e-7, as ill-conditioned as features get.
                .map(|(at, it)| it * 30.0 * (-18.0 * (at % size) as f32 / size as f32).exp())
                .collect();
            let it = Statistics::of(Features::new(&values, size).unwrap()).unwrap();
            let got = frechet_distance(&it, &it).unwrap();
            assert!(got.distance <= 1e-10, "{num_rows} rows of {size}: {got:?}");
        }
    }

    #[test]
    fn a_missing_rank_is_a_number_and_a_warning() {
        let rank_one = Statistics::new(vec![0.0; 2], vec![1.0, 1.0, 1.0, 1.0], Some(2)).unwrap();
        let whole = statistics(&[0.0; 2], &[1.0, 1.0]);
        let got = frechet_distance(&rank_one, &whole).unwrap();
        // The root of [1 1; 1 1] has the trace sqrt(2).
        assert!((got.distance - (4.0 - 2.0 * 2f64.sqrt())).abs() < 1e-14);
        let what = "samples".to_owned();
        let expected = Warning::RankDeficient { what, rank: 1, size: 2, num_rows: Some(2) };
        assert_eq!(got.warnings, [expected]);
        assert!(got.warnings[0].to_string().contains("2 rows are too few"));
        let nothing = statistics(&[3.0, 0.0], &[0.0, 0.0]);
        assert!((frechet_distance(&nothing, &nothing).unwrap().distance).abs() < 1e-15);
        let got = frechet_distance(&nothing, &whole).unwrap();
        assert!((got.distance - 11.0).abs() < 1e-14 && got.warnings.len() == 1);
    }

    #[test]
    fn matrices_that_are_not_covariances_are_refused() {
        let whole = statistics(&[0.0; 2], &[1.0, 1.0]);
        let negative = statistics(&[0.0; 2], &[1.0, -0.5]);
        let message = |a, b| frechet_distance(a, b).unwrap_err().to_string();
        let error = message(&whole, &negative);
        assert!(error.contains("got -5e-1 beside 1e0 in references"), "{error}");
        let rounded = statistics(&[0.0; 2], &[1.0, -1e-9]);
        let got = frechet_distance(&rounded, &whole).unwrap();
        assert!(matches!(got.warnings[0], Warning::NegativeEigenvalues { .. }));
        let other = statistics(&[0.0; 3], &[1.0; 3]);
        assert!(message(&whole, &other).contains("rows of 2 numbers, got rows of 3"));
    }

    #[test]
    fn numbers_near_the_ends_of_f64_are_handled() {
        for size in [1e-290, 1e-150, 1e150, 1e290] {
            let a = statistics(&[0.0; 2], &[size, 4.0 * size]);
            let b = statistics(&[0.0; 2], &[size, size]);
            let got = frechet_distance(&a, &b).unwrap();
            assert!((got.distance / size - 1.0).abs() < 1e-12, "{size:e}: {got:?}");
        }
        let far = statistics(&[1e200, 0.0], &[1.0, 1.0]);
        let near = statistics(&[0.0; 2], &[1.0, 1.0]);
        assert!(matches!(frechet_distance(&far, &near), Err(MetricsError::Numerical(_))));
        let wide = statistics(&[0.0; 2], &[f64::MAX, f64::MAX]);
        assert!(frechet_distance(&wide, &near).is_err());
        let skew = Statistics::new(vec![0.0; 2], vec![1e-300, 1e300, 1e300, 1e-300], None).unwrap();
        assert!(frechet_distance(&skew, &near).is_err());
    }
}
