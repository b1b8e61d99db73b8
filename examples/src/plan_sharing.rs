//! Measuring how alike self-conditions are, for the demo's tables.

pub mod calibration;

use crate::generate::Item;

/// `count` images of classes spread evenly over the table, the columns counted from `first_column`.
#[must_use]
pub fn spread(count: u32, num_classes: usize, first_column: u32) -> Vec<Item> {
    let (count, num_classes) = (u64::from(count), num_classes.max(1) as u64);
    let item = |index: u64| {
        // More images than classes take every class in turn.
        let label = if count < num_classes { index * num_classes / count } else { index % num_classes };
        Item { label: label as u32, column: first_column + (index / num_classes) as u32 }
    };
    (0..count).map(item).collect()
}
