//! Launch: rank and number of processes, as launchers say them in environment variables.

use std::time::Duration;

use crate::{
    error::DistError,
    launcher::{Launcher, Transport},
};

/// The variables of a launcher: rank, number of processes, rank on this machine.
type Names = (Launcher, &'static str, &'static str, &'static str);

/// torchrun first: it may be started by the others, once per machine. SLURM last: it may start the others. The number
/// of the step's tasks, not the job's: a job's script has no step, and is one process.
const NAMES: [Names; 4] = [
    (Launcher::Torchrun, "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    (Launcher::OpenMpi, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    (Launcher::Mpiexec, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    (Launcher::Slurm, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
];

/// The place of a process among those that were started together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The launcher that started it.
    pub launcher: Launcher,
    /// Number of the process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Number of the process on its machine, which chooses its GPU.
    pub local_rank: usize,
    /// How long a rank waits for another before all give up.
    pub limit: Duration,
    /// What the user wants exchanges to go through.
    pub transport: Option<Transport>,
    /// Where rank 0 can be found, if anything says so: its machine and a port.
    pub address: Option<(String, u16)>,
}

/// The variable with the seconds that ranks wait for each other.
const LIMIT: &str = "DDT_RANK_TIMEOUT";

/// The variable with the transport.
const TRANSPORT: &str = "DDT_TRANSPORT";

/// The variables with the address of rank 0. torchrun listens at its port itself, so the next one is used.
const ADDRESS: &str = "MASTER_ADDR";
const LAUNCHERS_PORT: &str = "MASTER_PORT";
const PORT: &str = "DDT_PORT";

/// Half an hour: as long as one rank may take for something that it does alone.
const DEFAULT_LIMIT: u64 = 1800;

impl Launch {
    /// One process.
    pub fn alone() -> Self {
        let (launcher, limit) = (Launcher::None, Duration::from_secs(DEFAULT_LIMIT));
        Self { launcher, rank: 0, size: 1, local_rank: 0, limit, transport: None, address: None }
    }

    /// Reads the environment of this process.
    ///
    /// # Errors
    /// [`DistError::Variable`] for a variable that makes no sense.
    pub fn from_env() -> Result<Self, DistError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Reads variables: those of the first launcher whose rank and number of processes are both set.
    ///
    /// # Errors
    /// [`DistError::Variable`] for a variable that makes no sense.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, DistError> {
        let number = |name: &'static str, below: Option<usize>| -> Result<Option<usize>, DistError> {
            let Some(got) = variable(name) else { return Ok(None) };
            match got.trim().parse::<usize>() {
                Ok(it) if below.is_none_or(|below| it < below) => Ok(Some(it)),
                _ => {
                    let expected = match below {
                        Some(below) => format!("a rank from 0 to {}", below.saturating_sub(1)),
                        None => "a whole number".to_owned(),
                    };
                    Err(DistError::Variable { name, expected, got })
                }
            }
        };
        let mut launch = Self::alone();
        if let Some(seconds) = number(LIMIT, None)? {
            launch.limit = Duration::from_secs(seconds as u64);
        }
        if let Some(got) = variable(TRANSPORT) {
            launch.transport = Some(match got.trim() {
                "mpi" => Transport::Mpi,
                "nccl" => Transport::Nccl,
                _ => {
                    let expected = "mpi or nccl".to_owned();
                    return Err(DistError::Variable { name: TRANSPORT, expected, got });
                }
            });
        }
        let set = |it: &&Names| variable(it.1).is_some() && variable(it.2).is_some();
        let Some(&(launcher, rank, size, local_rank)) = NAMES.iter().find(set) else { return Ok(launch) };
        launch.launcher = launcher;
        launch.size = number(size, None)?.unwrap_or(1);
        launch.rank = number(rank, Some(launch.size))?.unwrap_or_default();
        launch.local_rank = number(local_rank, None)?.unwrap_or_default();
        let port = |name, add: u16| -> Result<Option<u16>, DistError> {
            let Some(got) = variable(name) else { return Ok(None) };
            let port = got.trim().parse::<u16>().ok().filter(|it| *it > 0).and_then(|it| it.checked_add(add));
            let expected = format!("a port from 1 to {}", u16::MAX - add);
            port.map(Some).ok_or(DistError::Variable { name, expected, got })
        };
        let port = match port(PORT, 0)? {
            Some(it) => Some(it),
            None => port(LAUNCHERS_PORT, 1)?,
        };
        launch.address = variable(ADDRESS).filter(|it| !it.trim().is_empty()).zip(port);
        Ok(launch)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should stop")]
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Launch, DistError> {
        Launch::from_variables(|name| variables.iter().find(|it| it.0 == name).map(|it| it.1.to_owned()))
    }

    fn place(variables: &[(&str, &str)]) -> (Launcher, usize, usize, usize) {
        let it = of(variables).unwrap();
        (it.launcher, it.rank, it.size, it.local_rank)
    }

    #[test]
    fn launchers_are_understood() {
        assert_eq!(of(&[]), Ok(Launch::alone()));
        let torchrun = [
            ("RANK", "9"),
            ("WORLD_SIZE", "16"),
            ("LOCAL_RANK", "1"),
            // torchrun was started by srun, once per machine.
            ("SLURM_PROCID", "1"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ];
        assert_eq!(place(&torchrun), (Launcher::Torchrun, 9, 16, 1));
        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_SIZE", "6"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "2"),
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ];
        assert_eq!(place(&mpirun), (Launcher::OpenMpi, 5, 6, 2));
        assert_eq!(place(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")]), (Launcher::Mpiexec, 1, 2, 0));
        let srun = [("SLURM_PROCID", "7"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_LOCALID", "3")];
        assert_eq!(place(&srun), (Launcher::Slurm, 7, 8, 3));
        // The script of a job: one process, whatever the job's tasks; and a variable of a pair says nothing.
        assert_eq!(place(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).2, 1);
        assert_eq!(place(&[("RANK", "2"), ("PMI_RANK", "1"), ("PMI_SIZE", "2")]).0, Launcher::Mpiexec);
        assert_eq!(of(&[("DDT_RANK_TIMEOUT", "7")]).unwrap().limit, Duration::from_secs(7));
        assert_eq!(of(&[("DDT_TRANSPORT", "nccl")]).unwrap().transport, Some(Transport::Nccl));
    }

    #[test]
    fn rank_0_is_found_at_the_port_after_the_launchers_or_at_ours() {
        let mut torchrun =
            vec![("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "node0"), ("MASTER_PORT", "29500")];
        assert_eq!(of(&torchrun).unwrap().address, Some(("node0".to_owned(), 29501)));
        torchrun.push(("DDT_PORT", "7000"));
        assert_eq!(of(&torchrun).unwrap().address, Some(("node0".to_owned(), 7000)));
        assert_eq!(of(&torchrun[..3]).unwrap().address, None);
        // One process meets nobody, whatever the address is.
        assert!(of(&[("MASTER_ADDR", "node0"), ("MASTER_PORT", "x")]).is_ok());
    }

    #[test]
    fn nonsense_is_named() {
        let message = |variables: &[(&str, &str)]| of(variables).unwrap_err().to_string();
        let first = message(&[("RANK", "first"), ("WORLD_SIZE", "4")]);
        assert!(first.contains("RANK: expected a rank from 0 to 3, got \"first\""), "{first}");
        assert!(message(&[("RANK", "4"), ("WORLD_SIZE", "4")]).contains("from 0 to 3"));
        assert!(
            message(&[("RANK", "0"), ("WORLD_SIZE", "many")]).contains("WORLD_SIZE: expected a whole number")
        );
        assert!(message(&[("DDT_TRANSPORT", "gloo")]).contains("DDT_TRANSPORT: expected mpi or nccl, got"));
        let port = message(&[("RANK", "0"), ("WORLD_SIZE", "4"), ("MASTER_PORT", "65535")]);
        assert!(port.contains("MASTER_PORT: expected a port from 1 to 65534"), "{port}");
    }
}
