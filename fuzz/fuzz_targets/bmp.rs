//! BMP of every depth, and files of no known format.
#![no_main]

use ddt_fuzz::{allow_caught_panics, planted, seeds::LIMITS, target};

target!(
    16 << 20,
    64,
    |input: &[u8]| {
        let decoded = ddt_data::decode_rgb8(&[b"BM", input].concat(), &LIMITS);
        ddt_data::decode_rgb8(input, &LIMITS).ok();
        if let Ok(image) = decoded {
            planted(|| image.width() != 40 && image.height() == 24);
        }
    },
    allow_caught_panics()
);
