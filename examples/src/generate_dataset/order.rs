//! Which image stands in which row.

use anyhow::{Result, ensure};
use ddt_flow::{CounterNoise, Purpose};

use crate::generate::Item;

/// How rows follow from the seed, in words.
pub const ORDER: &str = "row i holds image k = permutation[i] of 0..count, drawn by Fisher-Yates from ChaCha8 \
    (seed, purpose 11, step 0, sample 0); its class is classes[k mod classes] and its column k / classes";

/// Columns of a class, which keep apart the noise of one class and the next.
const MAX_COLUMNS: usize = 1_000_000;

/// The images of a data set, row by row.
///
/// Classes are balanced: their counts differ by one at most, and the first classes have more.
/// Rows are permuted, so that any run of rows has all classes: scores over runs of rows, such as the Inception
/// Score of the usual scripts, need that.
///
/// ```text
/// k = permutation(seed)[row], label = classes[k mod C], column = k div C
/// ```
///
/// # Errors
///
/// More than a million images of a class, or no class.
pub fn items(classes: &[u32], count: u32, seed: u64) -> Result<Vec<Item>> {
    ensure!(!classes.is_empty(), "expected at least one class");
    let most = MAX_COLUMNS.saturating_mul(classes.len());
    ensure!(
        count as usize <= most,
        "expected at most {most} images, {MAX_COLUMNS} of each class, got {count}"
    );
    let order = CounterNoise::new(seed, Purpose::Shuffle, 0, 0).permutation(count as usize);
    let item = |k: usize| Item { label: classes[k % classes.len()], column: (k / classes.len()) as u32 };
    Ok(order.into_iter().map(item).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_balanced_and_no_image_comes_twice() {
        for count in [1, 2, 3, 7, 100] {
            let items = items(&[2, 5, 9], count, 4).unwrap();
            assert_eq!(items.len(), count as usize);
            let of = |label| items.iter().filter(|it| it.label == label).count();
            assert!(of(2) >= of(5) && of(5) >= of(9) && of(2) <= of(9) + 1);
            let mut samples: Vec<u64> = items.iter().map(|it| it.sample()).collect();
            samples.sort_unstable();
            samples.dedup();
            assert_eq!(samples.len(), items.len());
        }
    }

    #[test]
    fn rows_follow_from_the_seed_and_are_mixed() {
        let of = |seed| items(&[0, 1], 1000, seed).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        for run in of(1).chunks(100) {
            let ones = run.iter().filter(|it| it.label == 1).count();
            assert!((30..70).contains(&ones), "{ones} of a class in 100 rows");
        }
        // What was once drawn stays drawn.
        let rows: Vec<(u32, u32)> =
            items(&[3, 4], 8, 0).unwrap().iter().map(|it| (it.label, it.column)).collect();
        let permutation = CounterNoise::new(0, Purpose::Shuffle, 0, 0).permutation(8);
        let expected: Vec<(u32, u32)> =
            permutation.iter().map(|&k| (3 + (k % 2) as u32, (k / 2) as u32)).collect();
        assert_eq!(rows, expected);
    }

    #[test]
    fn too_many_images_are_refused() {
        assert!(items(&[], 1, 0).is_err());
        let message = items(&[1], 1_000_001, 0).unwrap_err().to_string();
        assert!(message.contains("at most 1000000 images"), "{message}");
    }
}
