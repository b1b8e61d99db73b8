//! PNG of every colour type and depth: chunks `part | type | data`, with the lengths and checksums that they need.
#![no_main]

use ddt_fuzz::{
    allow_caught_panics, planted,
    seeds::{LIMITS, chunks},
    target,
};

target!(
    24 << 20,
    64,
    |input: &[u8]| {
        let file = chunks(input);
        if let Ok(image) = ddt_data::decode_rgb8(&file, &LIMITS) {
            planted(|| image.width() > image.height() && ![40, 9].contains(&image.width()));
        }
    },
    allow_caught_panics()
);
