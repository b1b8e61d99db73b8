//! Several processes as one program: one result, or one message that names the rank and the cause.

use std::{fmt::Display, io::Write};

use anyhow::Result;
use ddt::Place;
use ddt_dist::{Group, Launch, RankFailed, agree};
use ddt_train::TrainError;

use crate::terminal::{INTERRUPTED, is_interruption};

/// Nothing to print: another rank prints the result, or why there is none.
#[derive(Debug, thiserror::Error)]
#[error("another rank says what happened")]
pub(crate) struct Silent {
    /// Exit status.
    pub(crate) status: u8,
}

/// The device of a process: a GPU without a number is that of its rank on the machine.
pub(crate) fn device_of(device: Place, launch: &Launch) -> Place {
    if device == Place::Cuda(None) { Place::Cuda(Some(launch.local_rank)) } else { device }
}

/// Waits for all ranks.
///
/// # Errors
/// The failure of the lowest rank that failed, on all.
pub(crate) fn agreed<T>(group: &dyn Group, own: &Result<T>) -> Result<(), RankFailed> {
    let own = own.as_ref().map_err(|it| format!("{it:#}"));
    agree(group, own.as_ref().map(|_| &[][..]).map_err(|it| it as &dyn Display)).map(drop)
}

/// The result on rank 0; a failure on the rank that failed, after all have learned of it.
pub(crate) fn together<T>(group: &dyn Group, own: Result<T>) -> Result<T> {
    if group.size() == 1 {
        return own;
    }
    let known = |it: &anyhow::Error| match it.downcast_ref::<TrainError>() {
        Some(TrainError::Rank(failed)) => Some(failed.clone()),
        _ => it.downcast_ref::<RankFailed>().cloned(),
    };
    let failed = match &own {
        Err(error) if is_interruption(error) => None,
        own => own.as_ref().err().and_then(known).or_else(|| agreed(group, own).err()),
    };
    let Some(failed) = failed else {
        let status = if own.is_ok() { 0 } else { INTERRUPTED };
        return if group.rank() == 0 { own } else { Err(Silent { status }.into()) };
    };
    if failed.speaker() == group.rank() {
        writeln!(std::io::stderr(), "error: {failed}").ok();
    }
    // mpirun ends the others as soon as one has failed: nobody leaves before the message is out.
    group.barrier().ok();
    Err(Silent { status: 1 }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_with_a_number_is_that_gpu_on_every_rank() {
        let launch = Launch { rank: 5, size: 8, local_rank: 1, ..Launch::alone() };
        let given = [Place::Cpu, Place::Cuda(None), Place::Cuda(Some(0)), Place::Cuda(Some(3))];
        let devices = given.map(|it| device_of(it, &launch));
        assert_eq!(devices, [Place::Cpu, Place::Cuda(Some(1)), Place::Cuda(Some(0)), Place::Cuda(Some(3))]);
    }
}
