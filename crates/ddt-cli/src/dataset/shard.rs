//! Number of this process, of how many.

use anyhow::{Context, Result, bail};
use ddt::files::npz::Shard;

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
///
/// # Errors
///
/// A rank that is not below the number of processes; a variable that is no whole number.
pub(super) fn find(
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

    fn of(variables: &[(&str, &str)]) -> Result<(usize, usize), String> {
        let variable = |name: &str| variables.iter().find(|it| it.0 == name).map(|it| it.1.to_owned());
        let shard = find(None, None, variable).map_err(|error| format!("{error:#}"))?;
        Ok((shard.rank(), shard.world()))
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
        assert_eq!(find(Some(1), Some(2), set).unwrap(), Shard::new(1, 2).unwrap());
        assert!(find(Some(1), None, set).is_err());
        assert!(find(Some(2), Some(2), set).is_err());
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
