//! Rows that occur more than once.

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::hash::Hasher;

use crate::Warning;

/// Looks for equal rows, keeping 8 bytes of each.
///
/// Rows are told apart by a 64-bit hash; among 50,000 different ones it takes two for equal once in ten
/// thousand million times.
///
/// ```
/// use ddt_metrics::Duplicates;
///
/// let mut duplicates = Duplicates::new();
/// for image in [[1u8, 2], [3, 4], [1, 2]] {
///     duplicates.push(&image);
/// }
/// let warning = duplicates.warning("samples").map(|it| it.to_string());
/// assert_eq!(warning.as_deref(), Some("1 of the samples equal an earlier one, as row 2 equals row 0"));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Duplicates {
    /// Where each hash stood first.
    seen: HashMap<u64, u64>,
    num_rows: u64,
    num_duplicates: u64,
    example: Option<(u64, u64)>,
}

impl Duplicates {
    /// Starts with no rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the bytes of the next row.
    pub fn push(&mut self, row: &[u8]) {
        let mut hasher = DefaultHasher::new();
        hasher.write(row);
        match self.seen.entry(hasher.finish()) {
            Entry::Vacant(entry) => {
                entry.insert(self.num_rows);
            }
            Entry::Occupied(entry) => {
                self.num_duplicates += 1;
                self.example.get_or_insert((*entry.get(), self.num_rows));
            }
        }
        self.num_rows += 1;
    }

    /// A warning if a row occurred again; `what` are the rows.
    #[must_use]
    pub fn warning(&self, what: &str) -> Option<Warning> {
        let (first, again) = self.example?;
        let num_duplicates = self.num_duplicates;
        Some(Warning::DuplicateRows { what: what.to_owned(), num_duplicates, first, again })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_rows_are_no_duplicates() {
        let mut duplicates = Duplicates::new();
        for row in 0..1000u32 {
            duplicates.push(&row.to_le_bytes());
        }
        assert_eq!(duplicates.warning("samples"), None);
        duplicates.push(&7u32.to_le_bytes());
        duplicates.push(&7u32.to_le_bytes());
        assert!(matches!(
            duplicates.warning("samples"),
            Some(Warning::DuplicateRows { num_duplicates: 2, first: 7, again: 1000, .. })
        ));
    }
}
