//! JPEG, baseline and progressive, of every colour space.
#![no_main]

use ddt_fuzz::{planted, seeds::LIMITS, target};

target!(16 << 20, 64, |input: &[u8]| {
    let file = [b"\xff\xd8", input].concat();
    if let Ok(image) = ddt_data::decode_rgb8(&file, &LIMITS) {
        planted(|| image.width() == 2 * image.height() && image.pixel(0, 0) != Some([128; 3]));
    }
});
