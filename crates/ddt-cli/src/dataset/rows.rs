//! The rows of an archive: the order of its images, and which process makes which.

use anyhow::{Context, Result, bail};
use ddt::{
    Image,
    files::npz::Shard,
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

/// Variables with rank and number of processes. SLURM is last: what it starts may start processes of its own.
const LAUNCHERS: [(&str, &str); 4] = [
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
];

/// The shard of the flags, else of the first launcher (torchrun, Open MPI, other MPI, SLURM) whose two variables are
/// both set, else the whole.
///
/// Wrong numbers only cost time: a process takes over what others leave, so no image is made twice or never.
pub(super) fn shard(
    rank: Option<usize>,
    world_size: Option<usize>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Shard> {
    match (rank, world_size) {
        (Some(rank), Some(world)) => return Shard::new(rank, world).context("--rank, --world-size"),
        (None, None) => {}
        _ => bail!("expected --rank and --world-size together, got one of them"),
    }
    let found = LAUNCHERS.iter().find_map(|&names| Some((names, variable(names.0)?, variable(names.1)?)));
    let Some(((rank_name, world_name), rank, world)) = found else { return Ok(Shard::ALONE) };
    let number = |name: &str, text: &str| {
        let wanted = || {
            format!(
                "expected a whole number in {name}, got {text:?}; unset it, or use --rank and --world-size"
            )
        };
        text.trim().parse::<usize>().with_context(wanted)
    };
    Shard::new(number(rank_name, &rank)?, number(world_name, &world)?)
        .with_context(|| format!("{rank_name}, {world_name}"))
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

    fn of(variables: &[(&str, &str)]) -> Result<(usize, usize), String> {
        let variable = |name: &str| variables.iter().find(|it| it.0 == name).map(|it| it.1.to_owned());
        let found = shard(None, None, variable).map_err(|error| format!("{error:#}"))?;
        Ok((found.rank(), found.world()))
    }

    #[test]
    fn launchers_are_understood() {
        assert_eq!(of(&[]), Ok((0, 1)));
        assert_eq!(of(&[("RANK", "2"), ("WORLD_SIZE", "4")]), Ok((2, 4)));
        assert_eq!(of(&[("SLURM_PROCID", "7"), ("SLURM_NTASKS", "8")]), Ok((7, 8)));
        assert_eq!(of(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")]), Ok((1, 2)));
        let mpi_in_slurm = [
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "2"),
            ("OMPI_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_SIZE", "6"),
        ];
        assert_eq!(of(&mpi_in_slurm), Ok((5, 6)));
        // One variable of a pair says nothing.
        assert_eq!(of(&[("RANK", "2"), ("PMI_RANK", "1"), ("PMI_SIZE", "2")]), Ok((1, 2)));
    }

    #[test]
    fn flags_come_first_and_together() {
        let set = |name: &str| Some(if name == "RANK" { "0" } else { "3" }.to_owned());
        assert_eq!(shard(Some(1), Some(2), set).unwrap(), Shard::new(1, 2).unwrap());
        assert!(shard(Some(1), None, set).is_err());
        assert!(shard(Some(2), Some(2), set).is_err());
    }

    #[test]
    fn nonsense_is_named() {
        let message = of(&[("RANK", "first"), ("WORLD_SIZE", "4")]).unwrap_err();
        assert!(message.contains("whole number in RANK, got \"first\""), "{message}");
        let message = of(&[("RANK", "4"), ("WORLD_SIZE", "4")]).unwrap_err();
        assert!(
            message.contains("RANK, WORLD_SIZE: ") && message.contains("expected a rank from 0 to 3"),
            "{message}"
        );
    }
}
