//! Whether rows are sorted by class.
//!
//! A sample written class after class gives each split of the Inception Score only a few classes, and the
//! score falls from hundreds to tens. Such an order shows in neighbours: with `n_c` rows of class `c` among
//! `n`, a random order has
//!
//! ```text
//! sum_c n_c (n_c - 1) / n
//! ```
//!
//! neighbours of one class.

use std::collections::HashMap;

use crate::{Features, Warning};

/// Standard deviations above a random order that are no chance.
const DEVIATIONS: f64 = 8.0;
/// A share of neighbours this much above that of a random order matters.
const SHARE: f64 = 0.2;

/// The class of each row: the place of its largest logit, the first of equal ones.
#[must_use]
pub fn predicted_classes(logits: Features<'_>) -> Vec<u32> {
    let class = |row: &[f32]| {
        let best = row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (at, &logit)| {
            if logit > best.1 { (at, logit) } else { best }
        });
        best.0 as u32
    };
    logits.rows().map(class).collect()
}

/// A warning if rows of one class follow each other; `classes` may be predictions with errors.
#[must_use]
pub fn sorted_by_class(classes: &[u32]) -> Option<Warning> {
    let pairs = classes.len().checked_sub(1).filter(|pairs| *pairs > 0)? as f64;
    let mut counts: HashMap<u32, f64> = HashMap::new();
    classes.iter().for_each(|class| *counts.entry(*class).or_default() += 1.0);
    // Sorted, for the sum's sake: a map has another order in every process.
    let mut counts: Vec<f64> = counts.into_values().collect();
    counts.sort_by(f64::total_cmp);
    let expected = counts.iter().map(|it| it * (it - 1.0)).sum::<f64>() / classes.len() as f64;
    let equal = classes.windows(2).filter(|pair| pair[0] == pair[1]).count() as f64;
    let more = equal - expected;
    let sorted = more > DEVIATIONS * expected.max(1.0).sqrt() && more > SHARE * pairs;
    sorted.then(|| Warning::SortedByClass { share: equal / pairs, expected: expected / pairs })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row's class, and a third of them another.
    fn noisy(classes: impl Iterator<Item = u32>, num_classes: u32) -> Vec<u32> {
        let noise = |(at, class): (usize, u32)| {
            if at % 3 == 0 { (class + at as u32 * 7) % num_classes } else { class }
        };
        classes.enumerate().map(noise).collect()
    }

    #[test]
    fn sorted_rows_are_seen_through_errors_of_the_classifier() {
        let sorted = |num_classes: u32, each: u32| (0..num_classes * each).map(move |at| at / each);
        assert!(sorted_by_class(&sorted(1000, 50).collect::<Vec<_>>()).is_some());
        assert!(sorted_by_class(&noisy(sorted(1000, 50), 1000)).is_some());
        assert!(sorted_by_class(&noisy(sorted(10, 100), 10)).is_some());
    }

    #[test]
    fn mixed_rows_one_class_and_few_rows_are_not() {
        let mixed = |num_classes: u32, len: u32| (0..len).map(move |at| (at * 7919 + at / 13) % num_classes);
        assert_eq!(sorted_by_class(&mixed(1000, 50_000).collect::<Vec<_>>()), None);
        assert_eq!(sorted_by_class(&mixed(10, 500).collect::<Vec<_>>()), None);
        assert_eq!(sorted_by_class(&vec![3; 1000]), None);
        for few in [&[][..], &[1], &[1, 1], &[1, 1, 2, 2]] {
            assert_eq!(sorted_by_class(few), None);
        }
    }

    #[test]
    fn the_largest_logit_is_the_class() {
        let logits = [0.0, 2.0, 1.0, -5.0, -7.0, -5.0];
        assert_eq!(predicted_classes(Features::new(&logits, 3).unwrap()), [1, 0]);
    }
}
