//! JPEG, baseline and progressive, of every colour space.
#![no_main]

use ddt_fuzz::{allow_caught_panics, planted, seeds::LIMITS, target};

target!(
    16 << 20,
    64,
    |input: &[u8]| {
        let file = [b"\xff\xd8", input].concat();
        if let Ok(image) = ddt_data::decode_rgb8(&file, &LIMITS) {
            planted(|| image.width() != 40 || image.height() != 24);
        }
    },
    allow_caught_panics()
);
