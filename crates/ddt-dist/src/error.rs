//! Errors of groups.

#[cfg(feature = "nccl")]
use ddt_kernels::nccl::NcclError;

use crate::launcher::Launcher;

/// Why processes cannot work together.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DistError {
    /// A launcher's variable that makes no sense.
    #[error("{name}: expected {expected}, got {got:?}; unset it, or start the program with the launcher")]
    Variable {
        /// Its name.
        name: &'static str,
        /// Valid values.
        expected: String,
        /// Its value.
        got: String,
    },
    /// Several processes, and no way for them to exchange anything.
    #[error(
        "{launcher} started {size} processes, of which this is rank {rank}: expected a way to exchange gradients; {remedy}"
    )]
    NoTransport {
        /// The launcher that started them.
        launcher: Launcher,
        /// Rank of this process.
        rank: usize,
        /// Number of processes.
        size: usize,
        /// Advice for the user.
        remedy: &'static str,
    },
    /// MPI and the launcher contradict each other.
    #[error(
        "expected {expected} processes, as {launcher} says, got {got} from MPI; with SLURM use srun --mpi=pmix, else the mpirun of the MPI that this program was built with"
    )]
    OtherSize {
        /// The launcher that started the processes.
        launcher: Launcher,
        /// Its number of processes.
        expected: usize,
        /// MPI's.
        got: usize,
    },
    /// MPI cannot be started.
    #[error("expected MPI to start once, it did not: another part of the program uses it")]
    MpiInUse,
    /// A number of ranks that cannot share the terms of a sum.
    #[error(
        "{ranks} processes cannot share {terms} {what}: expected a power of two that divides them, such as {nearest}"
    )]
    Ranks {
        /// The number of processes.
        ranks: usize,
        /// The number of terms.
        terms: usize,
        /// The terms, in words.
        what: &'static str,
        /// The nearest numbers that fit.
        nearest: String,
    },
    /// A rank that does not answer.
    #[error(
        "rank {rank} has not answered for {seconds} s: it was stopped, hangs or computes; the limit is DDT_RANK_TIMEOUT seconds"
    )]
    Silent {
        /// Its rank.
        rank: usize,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Two ranks that are at different places of the program.
    #[error(
        "expected {expected} bytes from rank {rank}, got {got}: the ranks run different programs or settings"
    )]
    Length {
        /// The other rank.
        rank: usize,
        /// Bytes expected.
        expected: usize,
        /// Bytes received.
        got: usize,
    },
    /// A rank whose process has ended.
    #[error("rank {rank} has ended before the others")]
    Gone {
        /// Its rank.
        rank: usize,
    },
    /// Nothing says where rank 0 is.
    #[error(
        "{launcher} started {size} processes and does not say where rank 0 is, which NCCL needs: set MASTER_ADDR to its machine and DDT_PORT to a free port there, the same for all processes"
    )]
    NoAddress {
        /// The launcher that started the processes.
        launcher: Launcher,
        /// Number of processes.
        size: usize,
    },
    /// Rank 0 cannot listen.
    #[error(
        "rank 0 cannot listen at port {port}: {why}; set DDT_PORT to a free one, the same for all processes"
    )]
    Listen {
        /// The port.
        port: u16,
        /// The system's words.
        why: String,
    },
    /// Ranks that rank 0 has waited for.
    #[error(
        "{ranks} of {size} did not come to rank 0, at port {port}, within {seconds} s, the limit DDT_RANK_TIMEOUT"
    )]
    Absent {
        /// Their numbers, in words.
        ranks: String,
        /// Number of processes.
        size: usize,
        /// The port.
        port: u16,
        /// How long they were waited for.
        seconds: u64,
    },
    /// No answer from rank 0.
    #[error(
        "rank 0 was not reached at {address} within {seconds} s, the limit DDT_RANK_TIMEOUT: {why}; expected MASTER_ADDR to be its machine and the port, DDT_PORT or the one after MASTER_PORT, to be open"
    )]
    NoRankZero {
        /// Machine and port.
        address: String,
        /// How long it was tried.
        seconds: u64,
        /// The last failure.
        why: String,
    },
    /// Rank 0 does not take this process.
    #[error(
        "rank 0 at {address} refused this process: {why}; processes of another start? set DDT_PORT to another port"
    )]
    Refused {
        /// Machine and port.
        address: String,
        /// Rank 0's words.
        why: String,
    },
    /// NCCL or what it needs is missing.
    #[cfg(feature = "nccl")]
    #[error("{0}; processes without GPUs are started with mpirun or srun, in a build with --features mpi")]
    NoNccl(NcclError),
    /// NCCL, or the driver below it, failed.
    #[cfg(feature = "nccl")]
    #[error("{0}")]
    Nccl(NcclError),
}

#[cfg(feature = "nccl")]
impl From<NcclError> for DistError {
    fn from(error: NcclError) -> Self {
        match error {
            NcclError::NoDriver | NcclError::NoDevice { .. } | NcclError::NoNccl => Self::NoNccl(error),
            other => Self::Nccl(other),
        }
    }
}
