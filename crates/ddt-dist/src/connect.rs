//! From a launch to a group: which transport, and what is missing for it.

use std::sync::Arc;

use crate::{
    error::DistError,
    group::{Alone, Group},
    launch::Launch,
    launcher::{Launcher, Transport},
};

/// The group of the processes that were started together.
///
/// Processes of torchrun are connected by NCCL, those of other launchers by MPI, or by NCCL in a build without MPI;
/// `DDT_TRANSPORT` says otherwise.
///
/// # Errors
/// [`DistError::NoTransport`] when there are several processes and this build has no way to connect them; the errors of
/// finding each other, of MPI and of NCCL.
pub fn connect(launch: &Launch) -> Result<Arc<dyn Group>, DistError> {
    if launch.size <= 1 {
        return Ok(Arc::new(Alone));
    }
    match transport(launch, cfg!(feature = "mpi"), cfg!(feature = "nccl"))? {
        Transport::Mpi => by_mpi(launch),
        Transport::Nccl => by_nccl(launch),
    }
}

#[cfg(feature = "mpi")]
fn by_mpi(launch: &Launch) -> Result<Arc<dyn Group>, DistError> {
    Ok(Arc::new(crate::mpi_group::Mpi::start(launch.launcher, launch.size, launch.limit)?))
}

#[cfg(not(feature = "mpi"))]
fn by_mpi(launch: &Launch) -> Result<Arc<dyn Group>, DistError> {
    Err(missing(launch, "build the program with --features mpi, or, for GPUs, nccl (docs/scale.md)"))
}

#[cfg(feature = "nccl")]
fn by_nccl(launch: &Launch) -> Result<Arc<dyn Group>, DistError> {
    Ok(Arc::new(crate::nccl_group::Nccl::start(launch)?))
}

#[cfg(not(feature = "nccl"))]
fn by_nccl(launch: &Launch) -> Result<Arc<dyn Group>, DistError> {
    Err(missing(launch, "build the program with --features nccl (docs/scale.md)"))
}

fn missing(launch: &Launch, remedy: &'static str) -> DistError {
    let Launch { launcher, rank, size, .. } = *launch;
    DistError::NoTransport { launcher, rank, size, remedy }
}

/// Which transport connects the processes, in a build that has some.
fn transport(launch: &Launch, has_mpi: bool, has_nccl: bool) -> Result<Transport, DistError> {
    let torchrun = launch.launcher == Launcher::Torchrun;
    match launch.transport {
        Some(Transport::Mpi) if torchrun => Err(missing(
            launch,
            "torchrun's processes have no MPI: start the same command with mpirun -n N or srun",
        )),
        Some(asked) => Ok(asked),
        None if torchrun && !has_nccl => Err(missing(
            launch,
            "on GPUs build the program with --features nccl; on CPUs start the same command with mpirun -n N or srun, \
             built with --features mpi (docs/scale.md)",
        )),
        None if has_nccl && (torchrun || !has_mpi) => Ok(Transport::Nccl),
        None => Ok(Transport::Mpi),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should stop")]
    use super::*;

    const TORCHRUN: Launcher = Launcher::Torchrun;

    fn of(launcher: Launcher, asked: Option<Transport>, mpi: bool, nccl: bool) -> Result<Transport, String> {
        let launch = Launch { launcher, rank: 1, size: 4, transport: asked, ..Launch::alone() };
        transport(&launch, mpi, nccl).map_err(|it| it.to_string())
    }

    #[test]
    fn torchrun_means_nccl_and_others_mpi_unless_asked() {
        let (mpi, nccl) = (Transport::Mpi, Transport::Nccl);
        assert_eq!(of(TORCHRUN, None, true, true), Ok(nccl));
        for launcher in [Launcher::OpenMpi, Launcher::Mpiexec, Launcher::Slurm] {
            assert_eq!(of(launcher, None, true, true), Ok(mpi));
            assert_eq!(of(launcher, None, false, true), Ok(nccl));
            assert_eq!(of(launcher, Some(nccl), true, true), Ok(nccl));
        }
    }

    #[test]
    fn processes_without_a_transport_learn_the_way() {
        assert_eq!(connect(&Launch::alone()).unwrap().size(), 1);
        let says = |outcome: Result<Transport, String>, words: &[&str]| {
            let message = outcome.unwrap_err();
            assert!(words.iter().all(|it| message.contains(it)), "{message}");
        };
        says(
            of(TORCHRUN, None, true, false),
            &["torchrun started 4 processes", "--features nccl", "mpirun -n N"],
        );
        says(of(TORCHRUN, Some(Transport::Mpi), true, true), &["have no MPI", "mpirun -n N or srun"]);
    }

    /// The build of these tests has neither, or what the stage `ranks` switches on.
    #[test]
    fn what_the_build_lacks_is_named() {
        let launch = Launch { launcher: Launcher::Slurm, rank: 1, size: 4, ..Launch::alone() };
        let asked = |it| connect(&Launch { transport: Some(it), ..launch.clone() }).unwrap_err().to_string();
        if cfg!(not(feature = "mpi")) {
            assert!(asked(Transport::Mpi).contains("--features mpi, or, for GPUs, nccl"));
        }
        let message = asked(Transport::Nccl);
        if cfg!(feature = "nccl") {
            assert!(message.contains("MASTER_ADDR") && message.contains("DDT_PORT"), "{message}");
        } else {
            assert!(message.contains("--features nccl"), "{message}");
        }
    }
}
