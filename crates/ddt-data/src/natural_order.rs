//! Names in the order people number them: `img2` before `img10`.

use std::{cmp::Ordering, iter::Peekable, slice::Iter};

/// Compares runs of digits as numbers and everything else byte by byte.
///
/// A total order: names that differ only in leading zeros fall back to their bytes.
pub(crate) fn natural_order(a: &[u8], b: &[u8]) -> Ordering {
    let (mut left, mut right) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return a.cmp(b),
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (x, y) = (number(&mut left), number(&mut right));
                x.len().cmp(&y.len()).then_with(|| x.cmp(&y))
            }
            _ => left.next().cmp(&right.next()),
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// Takes a run of digits, without leading zeros.
fn number(bytes: &mut Peekable<Iter<'_, u8>>) -> Vec<u8> {
    let mut digits = Vec::new();
    while let Some(digit) = bytes.next_if(|it| it.is_ascii_digit()) {
        if *digit != b'0' || !digits.is_empty() {
            digits.push(*digit);
        }
    }
    digits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_count_as_numbers() {
        let mut names =
            ["b", "a10", "a2", "a02", "a", "a2b10", "a2b9", "10", "9", "a99999999999999999999999"];
        names.sort_by(|a, b| natural_order(a.as_bytes(), b.as_bytes()));
        let sorted = ["9", "10", "a", "a02", "a2", "a2b9", "a2b10", "a10", "a99999999999999999999999", "b"];
        assert_eq!(names, sorted);
    }

    proptest! {
        #[test]
        fn it_is_a_total_order(a in "[a01 9]{0,6}", b in "[a01 9]{0,6}", c in "[a01 9]{0,6}") {
            let order = |a: &String, b: &String| natural_order(a.as_bytes(), b.as_bytes());
            prop_assert_eq!(order(&a, &b), order(&b, &a).reverse());
            prop_assert_eq!(order(&a, &b).is_eq(), a == b);
            if order(&a, &b).is_le() && order(&b, &c).is_le() {
                prop_assert!(order(&a, &c).is_le());
            }
        }
    }
}
