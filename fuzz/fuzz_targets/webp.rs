//! WebP, lossy, lossless and animated, in a RIFF container whose length is right.
#![no_main]

use ddt_fuzz::{allow_caught_panics, planted, seeds::LIMITS, target};

target!(
    32 << 20,
    256,
    |input: &[u8]| {
        let length = (input.len() as u32 + 4).to_le_bytes();
        let file = [b"RIFF", &length[..], b"WEBP", input].concat();
        if let Ok(image) = ddt_data::decode_rgb8(&file, &LIMITS) {
            planted(|| image.width() != 40 || image.height() != 24);
        }
    },
    allow_caught_panics()
);
