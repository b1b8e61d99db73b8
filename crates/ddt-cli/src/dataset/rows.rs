//! The rows of an archive: the order of its images, and which process makes which.

use anyhow::{Context, Result, bail};
use ddt::{
    Image,
    files::npz::Shard,
    flow::{CounterNoise, Purpose},
};
use ddt_dist::Launch;

/// Derivation of rows from the seed, in words.
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

/// The shard of the flags, else of the launcher (torchrun, Open MPI, other MPI, SLURM), else the whole.
///
/// Wrong numbers only cost time: a process takes over what others leave, so no image is made twice or never.
pub(super) fn shard(rank: Option<usize>, world_size: Option<usize>, launch: &Launch) -> Result<Shard> {
    match (rank, world_size) {
        (Some(rank), Some(world)) => Shard::new(rank, world).context("--rank, --world-size"),
        (None, None) => Ok(Shard::new(launch.rank, launch.size)?),
        _ => bail!("expected --rank and --world-size together, got one of them"),
    }
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

    #[test]
    fn flags_come_first_and_together() {
        let launch = Launch { rank: 2, size: 4, ..Launch::alone() };
        assert_eq!(shard(None, None, &launch).unwrap(), Shard::new(2, 4).unwrap());
        assert_eq!(shard(None, None, &Launch::alone()).unwrap(), Shard::ALONE);
        assert_eq!(shard(Some(1), Some(2), &launch).unwrap(), Shard::new(1, 2).unwrap());
        assert!(shard(Some(1), None, &launch).is_err());
        let message = format!("{:#}", shard(Some(2), Some(2), &launch).unwrap_err());
        assert!(
            message.contains("--rank, --world-size: ") && message.contains("a rank from 0 to 1"),
            "{message}"
        );
    }
}
