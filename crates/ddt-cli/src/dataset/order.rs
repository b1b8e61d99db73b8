//! The order of images in an archive.

use ddt::{
    Image,
    flow::{CounterNoise, Purpose},
};

/// How rows follow from the seed, in words.
pub(super) const ORDER: &str = "row i has image k = permutation[i] of 0..count, by Fisher-Yates from ChaCha8 \
    (seed, purpose 11, step 0, sample 0); its class is classes[k mod classes] and its column k / classes";

/// The images of a data set, row by row.
///
/// Classes are balanced: their counts differ by one at most, and the first classes have more.
/// Rows are permuted, so that any run of rows has all classes: scores over runs of rows, such as the Inception
/// Score of the usual scripts, need that.
///
/// ```text
/// k = permutation(seed)[row], label = classes[k mod C], column = k div C
/// ```
pub(super) fn images(classes: &[u32], count: u32, seed: u64) -> Vec<Image> {
    let order = CounterNoise::new(seed, Purpose::Shuffle, 0, 0).permutation(count as usize);
    let image = |k: usize| Image { label: classes[k % classes.len()], column: (k / classes.len()) as u32 };
    order.into_iter().map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_balanced_and_no_image_comes_twice() {
        for count in [1, 2, 3, 7, 100] {
            let images = images(&[2, 5, 9], count, 4);
            assert_eq!(images.len(), count as usize);
            let of = |label| images.iter().filter(|it| it.label == label).count();
            assert!(of(2) >= of(5) && of(5) >= of(9) && of(2) <= of(9) + 1);
            let mut samples: Vec<u64> = images.iter().map(|it| it.sample()).collect();
            samples.sort_unstable();
            samples.dedup();
            assert_eq!(samples.len(), images.len());
        }
    }

    #[test]
    fn rows_follow_from_the_seed_and_are_mixed() {
        let of = |seed| images(&[0, 1], 1000, seed);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        for run in of(1).chunks(100) {
            let ones = run.iter().filter(|it| it.label == 1).count();
            assert!((30..70).contains(&ones), "{ones} of a class in 100 rows");
        }
        // Recorded: archives that were begun must resume.
        let rows: Vec<(u32, u32)> = images(&[3, 4], 8, 0).iter().map(|it| (it.label, it.column)).collect();
        let permutation = CounterNoise::new(0, Purpose::Shuffle, 0, 0).permutation(8);
        let expected: Vec<(u32, u32)> =
            permutation.iter().map(|&k| (3 + (k % 2) as u32, (k / 2) as u32)).collect();
        assert_eq!(rows, expected);
    }
}
