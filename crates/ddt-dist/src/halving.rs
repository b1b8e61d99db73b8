//! Halving: a sum over ranks in the order of the tree, each rank ending with a part of it, and parts made whole.
//!
//! ```text
//! reduce-scatter, 4 ranks:  0-1 and 2-3 swap halves, then 0-2 and 1-3 quarters    (N - 1) / N of the data
//! all-gather:               the same backwards                                    (N - 1) / N of the data
//! ```
//!
//! Neighbours join first, as in [`tree`](crate::tree()) over ranks, and a sum of two floats does not depend on their
//! order: so the sum has the tree's bits.

use std::ops::Range;

use bytemuck::Pod;

use crate::{error::DistError, group::Group};

/// Which parts of the data each rank owns, and the rounds in which they are exchanged.
///
/// Data consists of parts that are not cut, such as the parameters of a network. The number of ranks is a power of
/// two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halving {
    rounds: Vec<Round>,
    own: Range<usize>,
}

/// An exchange with one rank: parts to keep, and parts to give.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Round {
    partner: usize,
    keep: Range<usize>,
    give: Range<usize>,
}

impl Halving {
    /// Divides parts of these sizes among the ranks, about equally.
    pub fn new(group: &dyn Group, sizes: &[usize]) -> Self {
        Self::of_rank(group.rank(), group.size(), sizes)
    }

    fn of_rank(rank: usize, size: usize, sizes: &[usize]) -> Self {
        let (mut rounds, mut own, mut bit) = (Vec::new(), 0..sizes.len(), 1);
        while bit < size {
            let middle = middle(&own, sizes);
            let (low, high) = (own.start..middle, middle..own.end);
            let (keep, give) = if rank & bit == 0 { (low, high) } else { (high, low) };
            own = keep.clone();
            rounds.push(Round { partner: rank ^ bit, keep, give });
            bit <<= 1;
        }
        Self { rounds, own }
    }

    /// The parts that this rank owns.
    pub fn own(&self) -> Range<usize> {
        self.own.clone()
    }

    /// Adds up `data` over the ranks; the own parts of it end as the sum, the rest as something unspecified.
    ///
    /// `firsts[i]` is the first element of part `i`, and the last of them the end of the data.
    ///
    /// # Errors
    /// [`DistError`] when the exchange fails.
    pub fn reduce_scatter(
        &self,
        group: &dyn Group,
        data: &mut [f32],
        firsts: &[usize],
    ) -> Result<(), DistError> {
        for Round { partner, keep, give } in &self.rounds {
            let mut other = vec![0f32; elements(keep, firsts).len()];
            let give = bytemuck::cast_slice(&data[elements(give, firsts)]);
            group.exchange(*partner, give, bytemuck::cast_slice_mut(&mut other))?;
            data[elements(keep, firsts)].iter_mut().zip(&other).for_each(|(sum, it)| *sum += it);
        }
        Ok(())
    }

    /// Gives every rank the parts of their owners.
    ///
    /// # Errors
    /// [`DistError`] when the exchange fails.
    pub fn all_gather<T: Pod>(
        &self,
        group: &dyn Group,
        data: &mut [T],
        firsts: &[usize],
    ) -> Result<(), DistError> {
        for Round { partner, keep, give } in self.rounds.iter().rev() {
            // What was given to the partner is the partner's by now, with all it owns.
            let (keep, give) = (elements(keep, firsts), elements(give, firsts));
            // The two are neighbours.
            let (own, other) = if keep.end == give.start {
                let (low, high) = data.split_at_mut(keep.end);
                (&low[keep], &mut high[..give.len()])
            } else {
                let (low, high) = data.split_at_mut(keep.start);
                (&high[..keep.len()], &mut low[give])
            };
            group.exchange(*partner, bytemuck::cast_slice(own), bytemuck::cast_slice_mut(other))?;
        }
        Ok(())
    }
}

/// The elements of some parts.
fn elements(parts: &Range<usize>, firsts: &[usize]) -> Range<usize> {
    firsts[parts.start]..firsts[parts.end]
}

/// The part before which to cut a run, so that both sides have about as many elements.
fn middle(run: &Range<usize>, sizes: &[usize]) -> usize {
    let total: usize = sizes[run.clone()].iter().sum();
    let (mut best, mut cut, mut before) = (total, run.start, 0);
    for at in run.clone() {
        before += sizes[at];
        let off = (2 * before).abs_diff(total);
        if off < best {
            (best, cut) = (off, at + 1);
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should stop")]
    use super::*;
    use crate::{
        threads::thread_group,
        tree::{own_run, tree},
    };

    /// Terms of very different sizes: their sum depends on the order.
    fn term(i: usize, len: usize) -> Vec<f32> {
        (0..len)
            .map(|at| ((i * 37 + at * 11) % 101) as f32 * 10f32.powi((i * 5 + at) as i32 % 9 - 4) - 3.0)
            .collect()
    }

    fn summed(run: Range<usize>, len: usize) -> Vec<f32> {
        let mut join = |a: Vec<f32>, b: Vec<f32>| Ok::<_, ()>(a.iter().zip(&b).map(|(a, b)| a + b).collect());
        tree(run, &mut |i| Ok(term(i, len)), &mut join).unwrap()
    }

    #[test]
    fn any_number_of_ranks_gives_the_same_bits_and_sends_what_the_formula_says() {
        let terms = 24;
        for sizes in [vec![5, 1, 7, 3, 16, 2], vec![1], vec![9, 1, 1], vec![0, 4, 0], vec![1; 40]] {
            let len: usize = sizes.iter().sum();
            let firsts: Vec<usize> = (0..=sizes.len()).map(|it| sizes[..it].iter().sum()).collect();
            let expected = summed(0..terms, len);
            for size in [1, 2, 4, 8] {
                let outcomes: Vec<(Vec<f32>, u64)> = std::thread::scope(|scope| {
                    let rank = |group: crate::ThreadRank| {
                        let (sizes, firsts) = (&sizes, &firsts);
                        scope.spawn(move || {
                            let run = own_run(group.rank(), size, terms, "terms").unwrap();
                            let mut data = summed(run, len);
                            let halving = Halving::new(&group, sizes);
                            halving.reduce_scatter(&group, &mut data, firsts).unwrap();
                            halving.all_gather(&group, &mut data, firsts).unwrap();
                            (data, group.bytes_sent())
                        })
                    };
                    let ranks: Vec<_> = thread_group(size).into_iter().map(rank).collect();
                    ranks.into_iter().map(|it| it.join().unwrap()).collect()
                });
                let bits = |it: &[f32]| it.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                for (data, _) in &outcomes {
                    assert_eq!(bits(data), bits(&expected), "{size} ranks, {sizes:?}");
                }
                let sent: u64 = outcomes.iter().map(|it| it.1).sum();
                assert_eq!(sent, 2 * (size as u64 - 1) * 4 * len as u64, "{size} ranks, {sizes:?}");
            }
        }
        let sequential =
            (1..terms).fold(term(0, 34), |sum, i| sum.iter().zip(term(i, 34)).map(|(a, b)| a + b).collect());
        assert_ne!(sequential, summed(0..terms, 34), "the terms must tell orders apart");
    }

    #[test]
    fn parts_are_owned_once_and_shared_about_equally() {
        let sizes: Vec<usize> = (0..100).map(|it| 50 + it % 7).collect();
        let total: usize = sizes.iter().sum();
        for size in [1, 2, 4, 8, 16] {
            let mut owners = vec![0; sizes.len()];
            for rank in 0..size {
                let own = Halving::of_rank(rank, size, &sizes).own();
                let share: usize = sizes[own.clone()].iter().sum();
                assert!(share.abs_diff(total / size) <= 110, "{rank} of {size}: {share}");
                own.for_each(|it| owners[it] += 1);
            }
            assert!(owners.iter().all(|it| *it == 1));
        }
    }
}
