//! Eigenvalues by rotations, and the Fréchet distance by its textbook formula: slow and independent.

use ddt_metrics::Statistics;

/// Eigenvalues of a symmetric matrix, and the vectors in columns, by cyclic Jacobi rotations.
pub(crate) fn eigen(matrix: &[f64], size: usize) -> (Vec<f64>, Vec<f64>) {
    let mut a = matrix.to_vec();
    let mut vectors = vec![0.0; size * size];
    (0..size).for_each(|at| vectors[at * size + at] = 1.0);
    for _ in 0..60 {
        for p in 0..size {
            for q in p + 1..size {
                if a[p * size + q] == 0.0 {
                    continue;
                }
                let theta = (a[q * size + q] - a[p * size + p]) / (2.0 * a[p * size + q]);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                let rotate = |matrix: &mut [f64], i: usize, j: usize| {
                    let (x, y) = (matrix[i], matrix[j]);
                    (matrix[i], matrix[j]) = (c * x - s * y, s * x + c * y);
                };
                (0..size).for_each(|row| rotate(&mut a, row * size + p, row * size + q));
                (0..size).for_each(|column| rotate(&mut a, p * size + column, q * size + column));
                (0..size).for_each(|row| rotate(&mut vectors, row * size + p, row * size + q));
            }
        }
    }
    ((0..size).map(|at| a[at * size + at]).collect(), vectors)
}

fn product(a: &[f64], b: &[f64], size: usize) -> Vec<f64> {
    let entry = |at: usize| (0..size).map(|k| a[at / size * size + k] * b[k * size + at % size]).sum();
    (0..size * size).map(entry).collect()
}

/// `|mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr sqrt(sqrt(A) B sqrt(A))`, root by root.
pub(crate) fn frechet(a: &Statistics, b: &Statistics) -> f64 {
    let size = a.size();
    let (values, vectors) = eigen(a.covariance(), size);
    let root_entry = |at: usize| {
        let (row, column) = (at / size, at % size);
        let part =
            |k: usize| vectors[row * size + k] * values[k].max(0.0).sqrt() * vectors[column * size + k];
        (0..size).map(part).sum()
    };
    let root: Vec<f64> = (0..size * size).map(root_entry).collect();
    let inner = product(&product(&root, b.covariance(), size), &root, size);
    let roots: f64 = eigen(&inner, size).0.iter().map(|it| it.max(0.0).sqrt()).sum();
    let trace = |it: &Statistics| (0..size).map(|at| it.covariance()[at * size + at]).sum::<f64>();
    let means: f64 = a.mean().iter().zip(b.mean()).map(|(a, b)| (a - b).powi(2)).sum();
    means + trace(a) + trace(b) - 2.0 * roots
}
