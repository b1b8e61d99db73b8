//! Tree: the one order of a sum, whatever the number of ranks.

use std::ops::Range;

use crate::error::DistError;

/// Joins the terms of a run as a binary tree; a run of one term is that term.
///
/// A run splits in the middle; of an odd number of terms, the left half has one more. So the two halves of an even
/// run, their halves, and so on, are trees of their own that other ranks may sum: [`own_run`].
///
/// Holds `1 + log2(terms)` partial sums at most.
///
/// # Errors
/// Those of `leaf` and `join`.
pub fn tree<T, E>(
    run: Range<usize>,
    leaf: &mut impl FnMut(usize) -> Result<T, E>,
    join: &mut impl FnMut(T, T) -> Result<T, E>,
) -> Result<T, E> {
    if run.len() <= 1 {
        return leaf(run.start);
    }
    let middle = run.start + run.len().div_ceil(2);
    let left = tree(run.start..middle, leaf, join)?;
    let right = tree(middle..run.end, leaf, join)?;
    join(left, right)
}

/// The terms of a tree that a rank sums, a node of the tree; `what` the terms are is part of the error.
///
/// # Errors
/// [`DistError::Ranks`] unless the number of ranks is a power of two that divides the number of terms.
pub fn own_run(
    rank: usize,
    ranks: usize,
    terms: usize,
    what: &'static str,
) -> Result<Range<usize>, DistError> {
    let fits = |it: usize| it.is_power_of_two() && terms.is_multiple_of(it);
    if fits(ranks) {
        let len = terms / ranks;
        return Ok(rank * len..(rank + 1) * len);
    }
    let below = (1..ranks).rev().find(|it| fits(*it));
    let above = (ranks..=terms).find(|it| fits(*it));
    let nearest =
        [below, above].into_iter().flatten().map(|it| it.to_string()).collect::<Vec<_>>().join(" or ");
    Err(DistError::Ranks { ranks, terms, what, nearest })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should stop")]
    use super::*;

    fn shape(run: Range<usize>) -> String {
        let mut leaf = |it: usize| Ok::<_, ()>(it.to_string());
        tree(run, &mut leaf, &mut |a, b| Ok(format!("({a} {b})"))).unwrap()
    }

    #[test]
    fn runs_of_ranks_are_nodes() {
        assert_eq!(shape(0..1), "0");
        assert_eq!(shape(0..3), "((0 1) 2)");
        assert_eq!(shape(0..6), "(((0 1) 2) ((3 4) 5))");
        for terms in [1usize, 2, 4, 6, 8, 12, 24, 40] {
            for ranks in [1, 2, 4, 8].into_iter().filter(|it| terms % it == 0) {
                let mut own = |rank| Ok::<_, ()>(shape(own_run(rank, ranks, terms, "terms").unwrap()));
                let joined = tree(0..ranks, &mut own, &mut |a, b| Ok(format!("({a} {b})"))).unwrap();
                assert_eq!(joined, shape(0..terms), "{ranks} ranks, {terms} terms");
            }
        }
    }

    #[test]
    fn other_numbers_of_ranks_are_refused_with_the_nearest() {
        let nearest = |ranks, terms| match own_run(0, ranks, terms, "micro-batches") {
            Err(DistError::Ranks { nearest, .. }) => nearest,
            other => panic!("{other:?}"),
        };
        assert_eq!(nearest(3, 8), "2 or 4");
        assert_eq!(nearest(16, 8), "8");
        assert_eq!(nearest(2, 1), "1");
        assert_eq!(nearest(8, 12), "4");
        let message = own_run(0, 3, 8, "micro-batches").unwrap_err().to_string();
        assert!(message.contains("3 processes cannot share 8 micro-batches") && message.ends_with("2 or 4"));
    }
}
