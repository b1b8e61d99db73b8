//! No numbers make anything panic, and no result is NaN.

use ddt_metrics::{
    Duplicates, Features, Statistics, frechet_distance, inception_score, precision_recall, predicted_classes,
    sorted_by_class,
};
use proptest::prelude::*;

/// f32 of any magnitude, most of them finite.
fn wild() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => any::<f32>().prop_map(|it| if it.is_finite() { it } else { 0.0 }),
        2 => prop::sample::select(vec![0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, 1.0]),
    ]
}

fn wild_f64() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => any::<f64>(),
        4 => -10.0f64..10.0,
        2 => prop::sample::select(vec![0.0, 1.0, f64::MAX, f64::MIN, 1e-320, f64::NAN, f64::INFINITY]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_features(size in 0usize..6, values in prop::collection::vec(wild(), 0..60), k in 0usize..6) {
        let Ok(features) = Features::new(&values, size) else { return Ok(()) };
        let half = features.num_rows() / 2 * size;
        let (a, b) = (Features::new(&values[..half], size).unwrap(), Features::new(&values[half..], size).unwrap());
        if let (Ok(left), Ok(right)) = (Statistics::of(a), Statistics::of(b)) {
            if let Ok(it) = frechet_distance(&left, &right) {
                prop_assert!(it.distance.is_finite() && it.distance >= 0.0);
            }
            let same = frechet_distance(&left, &left).unwrap();
            let scale: f64 = left.covariance().iter().fold(1.0, |a, b| a.max(b.abs()));
            prop_assert!(same.distance <= 1e-9 * scale, "{:?} at {:e}", same, scale);
        }
        if let Ok(it) = precision_recall(a, b, k) {
            prop_assert!((0.0..=1.0).contains(&it.precision) && (0.0..=1.0).contains(&it.recall));
        }
        if let Ok(it) = inception_score(features, k) {
            prop_assert!(it.mean >= 1.0 - 1e-9 && it.mean <= size as f64 + 1e-9);
        }
        let _ = sorted_by_class(&predicted_classes(features));
    }

    #[test]
    fn any_bits_are_features_or_an_error(bits in prop::collection::vec(any::<u32>(), 0..40), size in 0usize..9) {
        let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        if Features::new(&values, size).is_ok() {
            prop_assert!(values.iter().all(|it| it.is_finite()));
        }
    }

    #[test]
    fn any_statistics(size in 0usize..4, pool in prop::collection::vec(wild_f64(), 24), rows in any::<u64>()) {
        let symmetric = |from: usize| -> Vec<f64> {
            let entry = |at: usize| {
                let (row, column) = (at / size.max(1), at % size.max(1));
                pool[from + row.min(column) * 3 + row.max(column)]
            };
            (0..size * size).map(entry).collect()
        };
        let made = |from: usize| Statistics::new(pool[from..from + size].to_vec(), symmetric(from + 3), Some(rows));
        if let (Ok(a), Ok(b)) = (made(0), made(12))
            && let Ok(it) = frechet_distance(&a, &b)
        {
            prop_assert!(it.distance.is_finite() && it.distance >= 0.0);
        }
    }

    #[test]
    fn any_classes_and_bytes(classes in prop::collection::vec(any::<u32>(), 0..50)) {
        let _ = sorted_by_class(&classes);
        let mut duplicates = Duplicates::new();
        classes.iter().for_each(|it| duplicates.push(&it.to_le_bytes()));
        let distinct: std::collections::HashSet<_> = classes.iter().collect();
        prop_assert_eq!(duplicates.warning("rows").is_some(), distinct.len() < classes.len());
    }
}
