//! The launchers that are understood, and what exchanges can go through.

use std::fmt;

/// A program that starts processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// Nothing: one process.
    None,
    /// PyTorch's torchrun.
    Torchrun,
    /// Open MPI's mpirun.
    OpenMpi,
    /// The mpiexec of another MPI, such as MPICH and Intel's.
    Mpiexec,
    /// SLURM's srun.
    Slurm,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "nothing",
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "mpirun",
            Self::Mpiexec => "mpiexec",
            Self::Slurm => "srun",
        })
    }
}

/// What exchanges between processes go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// MPI.
    Mpi,
    /// NVIDIA's NCCL, between GPUs.
    Nccl,
}
