//! One process of several.

use crate::npz::error::NpzError;

/// Which process of how many this is; it decides with which batches a process begins, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    // Invariant: rank < world.
    rank: usize,
    world: usize,
}

impl Shard {
    /// The only process.
    pub const ALONE: Self = Self { rank: 0, world: 1 };

    /// Process `rank` (from 0) of `world`.
    ///
    /// # Errors
    ///
    /// [`NpzError::Invalid`] unless `rank < world`.
    pub fn new(rank: usize, world: usize) -> Result<Self, NpzError> {
        if rank < world {
            return Ok(Self { rank, world });
        }
        let expected = match world.checked_sub(1) {
            None => "at least 1 process".to_owned(),
            Some(last) => format!("a rank from 0 to {last}"),
        };
        Err(NpzError::Invalid { what: "share", expected, got: format!("rank {rank} of {world}") })
    }

    /// Number of this process, from 0.
    #[must_use]
    pub fn rank(self) -> usize {
        self.rank
    }

    /// Number of processes.
    #[must_use]
    pub fn world(self) -> usize {
        self.world
    }

    /// All batches: `rank, rank + world, ...`, and then those of others from the last one down, where their
    /// processes come last.
    pub(crate) fn order(self, num_batches: usize) -> impl Iterator<Item = usize> {
        let others = (0..num_batches).rev().filter(move |batch| batch % self.world != self.rank);
        (self.rank..num_batches).step_by(self.world).chain(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_batches_come_first_and_all_come_once() {
        let order: Vec<usize> = Shard::new(1, 3).unwrap().order(8).collect();
        assert_eq!(order, [1, 4, 7, 6, 5, 3, 2, 0]);
        assert_eq!(Shard::ALONE.order(3).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(Shard::new(9, 10).unwrap().order(3).collect::<Vec<_>>(), [2, 1, 0]);
    }

    #[test]
    fn impossible_shares_are_refused() {
        let message = |rank, world| Shard::new(rank, world).unwrap_err().to_string();
        assert_eq!(message(3, 3), "share: expected a rank from 0 to 2, got rank 3 of 3");
        assert_eq!(message(0, 0), "share: expected at least 1 process, got rank 0 of 0");
    }
}
