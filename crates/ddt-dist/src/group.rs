//! Group: the ranks of a computation, and the exchange of bytes between two of them.

use std::fmt;

use crate::error::DistError;

/// Some processes, or threads, that run the same program: ranks `0..size`.
///
/// Every rank makes the same calls in the same order. The calls block; an implementation bounds how long.
pub trait Group: fmt::Debug + Send + Sync {
    /// Number of this rank.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Sends `send` to `partner`, and fills `receive` with what the partner sends, which calls this with this rank as
    /// its partner. Either may be empty.
    ///
    /// # Errors
    /// [`DistError`] when the partner is gone, silent, or sends another number of bytes; MPI itself ends all processes
    /// when the partner sends more.
    fn exchange(&self, partner: usize, send: &[u8], receive: &mut [u8]) -> Result<(), DistError>;

    /// Bytes that this rank has sent.
    fn bytes_sent(&self) -> u64;

    /// The bytes of every rank, equally many each, one after the other.
    ///
    /// Through rank 0: meant for some hundred bytes.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    fn gather(&self, own: &[u8]) -> Result<Vec<u8>, DistError> {
        let (rank, size, len) = (self.rank(), self.size(), own.len());
        let mut all = vec![0; size * len];
        all[rank * len..(rank + 1) * len].copy_from_slice(own);
        if rank == 0 {
            (1..size).try_for_each(|it| self.exchange(it, &[], &mut all[it * len..(it + 1) * len]))?;
            (1..size).try_for_each(|it| self.exchange(it, &all, &mut []))?;
        } else {
            self.exchange(0, own, &mut [])?;
            self.exchange(0, &[], &mut all)?;
        }
        Ok(all)
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    fn barrier(&self) -> Result<(), DistError> {
        self.gather(&[0]).map(drop)
    }
}

/// The group of one process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Group for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&self, partner: usize, _: &[u8], receive: &mut [u8]) -> Result<(), DistError> {
        Err(DistError::Length { rank: partner, expected: receive.len(), got: 0 })
    }

    fn bytes_sent(&self) -> u64 {
        0
    }
}
