//! Errors of groups.

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
    #[error("rank {rank} has not answered for {seconds} s")]
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
}
