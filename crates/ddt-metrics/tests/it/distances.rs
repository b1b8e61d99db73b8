//! Fréchet distance against a closed form and an independent method, and its laws.

use ddt_metrics::{Features, Statistics, Warning, frechet_distance};
use proptest::prelude::*;

/// Rows of 1 to 9 numbers, for two sets.
fn two_sets() -> impl Strategy<Value = (usize, Vec<f32>, Vec<f32>)> {
    let rows = |size: usize| {
        (2usize..40).prop_flat_map(move |rows| prop::collection::vec(-9.0f32..9.0, rows * size))
    };
    (1usize..10).prop_flat_map(move |size| (Just(size), rows(size), rows(size)))
}

fn statistics(values: &[f32], size: usize) -> Statistics {
    Statistics::of(Features::new(values, size).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn equals_the_textbook((size, a, b) in two_sets()) {
        let (left, right) = (statistics(&a, size), statistics(&b, size));
        let got = frechet_distance(&left, &right).unwrap();
        // The textbook's roots of eigenvalues near zero are accurate only to the root of f64's precision.
        prop_assert!((got.distance - textbook(&left, &right)).abs() <= 1e-5, "{:?}", got);
    }

    #[test]
    fn is_a_distance((size, a, b) in two_sets()) {
        let (left, right) = (statistics(&a, size), statistics(&b, size));
        let there = frechet_distance(&left, &right).unwrap();
        let back = frechet_distance(&right, &left).unwrap();
        prop_assert!((there.distance - back.distance).abs() <= 1e-10 * (1.0 + there.distance));
        prop_assert!(there.distance >= 0.0);
        prop_assert!(frechet_distance(&left, &left).unwrap().distance <= 1e-10);
        let deficient = |what: &str| {
            there.warnings.iter().any(|it| matches!(it, Warning::RankDeficient { what: of, .. } if of == what))
        };
        if a.len() / size <= size {
            prop_assert!(deficient("samples"), "{:?}", there);
        }
        if b.len() / size <= size {
            prop_assert!(deficient("references"), "{:?}", there);
        }
    }

    #[test]
    fn diagonal_covariances_have_a_closed_form(
        spreads in prop::collection::vec((0.0f64..9.0, 0.0f64..9.0, -5.0f64..5.0), 1..30)
    ) {
        let size = spreads.len();
        let diagonal = |of: fn(&(f64, f64, f64)) -> f64| {
            let mut matrix = vec![0.0; size * size];
            spreads.iter().enumerate().for_each(|(at, it)| matrix[at * (size + 1)] = of(it).powi(2));
            matrix
        };
        let shift: Vec<f64> = spreads.iter().map(|it| it.2).collect();
        let a = Statistics::new(shift, diagonal(|it| it.0), None).unwrap();
        let b = Statistics::new(vec![0.0; size], diagonal(|it| it.1), None).unwrap();
        let want: f64 = spreads.iter().map(|it| (it.0 - it.1).powi(2) + it.2.powi(2)).sum();
        let got = frechet_distance(&a, &b).unwrap().distance;
        // An eigenvalue may vanish in the rounding of the largest, its root in the root of that.
        prop_assert!((got - want).abs() <= 1e-5 * (1.0 + want), "{} instead of {}", got, want);
    }
}

#[test]
fn the_textbook_itself_is_right() {
    let matrix = [2.0, 1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 5.0];
    let mut values = eigen(&matrix, 3).0;
    values.sort_by(f64::total_cmp);
    for (got, want) in values.iter().zip([1.0, 3.0, 5.0]) {
        assert!((got - want).abs() < 1e-14);
    }
}

/// Eigenvalues of a symmetric matrix, and the vectors in columns, by cyclic Jacobi rotations.
fn eigen(matrix: &[f64], size: usize) -> (Vec<f64>, Vec<f64>) {
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
fn textbook(a: &Statistics, b: &Statistics) -> f64 {
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
