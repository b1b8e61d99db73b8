//! Nothing depends on the order of rows, or on who summed which of them.

use ddt_metrics::{Features, Moments, Statistics, frechet_distance, inception_score, precision_recall};
use proptest::prelude::*;

/// A strategy for rows, and a permutation of them.
fn rows_and_order() -> impl Strategy<Value = (usize, Vec<f32>, Vec<usize>)> {
    (1usize..8, 5usize..60).prop_flat_map(|(size, rows)| {
        let values = prop::collection::vec(-50.0f32..50.0, rows * size);
        (Just(size), values, Just((0..rows).collect::<Vec<usize>>()).prop_shuffle())
    })
}

fn reordered(values: &[f32], size: usize, order: &[usize]) -> Vec<f32> {
    order.iter().flat_map(|&row| values[row * size..(row + 1) * size].iter().copied()).collect()
}

fn close(got: &Statistics, want: &Statistics) -> bool {
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-12 * (1.0 + b.abs()) * 2500.0;
    got.num_rows() == want.num_rows()
        && got.mean().iter().zip(want.mean()).all(near)
        && got.covariance().iter().zip(want.covariance()).all(near)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn parts_merge_to_the_whole((size, values, _) in rows_and_order(), cuts in prop::collection::vec(0usize..60, 0..4)) {
        let rows = values.len() / size;
        let mut cuts: Vec<usize> = cuts.into_iter().map(|it| it.min(rows)).chain([0, rows]).collect();
        cuts.sort_unstable();
        let mut merged = Moments::new(size).unwrap();
        for part in cuts.windows(2) {
            let mut moments = Moments::new(size).unwrap();
            moments.push(Features::new(&values[part[0] * size..part[1] * size], size).unwrap()).unwrap();
            merged.merge(&moments).unwrap();
        }
        let whole = Statistics::of(Features::new(&values, size).unwrap()).unwrap();
        prop_assert!(close(&merged.finish().unwrap(), &whole));
    }

    #[test]
    fn the_order_of_rows_changes_nothing((size, values, order) in rows_and_order()) {
        let other = reordered(&values, size, &order);
        let (a, b) = (Features::new(&values, size).unwrap(), Features::new(&other, size).unwrap());
        let (whole, again) = (Statistics::of(a).unwrap(), Statistics::of(b).unwrap());
        prop_assert!(close(&again, &whole));
        prop_assert!(frechet_distance(&whole, &again).unwrap().distance <= 1e-8);
        let reference: Vec<f32> = values.iter().map(|it| it * 0.7 + 3.0).collect();
        let reference = Features::new(&reference, size).unwrap();
        prop_assert_eq!(precision_recall(a, reference, 3).unwrap(), precision_recall(b, reference, 3).unwrap());
        // One split holds all rows.
        let scores = (inception_score(a, 5000).unwrap().mean, inception_score(b, 5000).unwrap().mean);
        prop_assert!((scores.0 - scores.1).abs() <= 1e-9);
    }
}
