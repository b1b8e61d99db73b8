//! The centre crop against Pillow's, and at all shapes.

use ddt_data::{Rgb8, center_crop};
use proptest::prelude::*;

use crate::images::noise;

/// Width, height, size, and 64-bit FNV-1a of the crop of noise by Pillow 12.3.0; see tests/golden/README.md.
const PILLOW: &[(u32, u32, u32, u64)] = &[
    (500, 375, 256, 0x35144fea721c086b),
    (375, 500, 64, 0xc94f19f725671735),
    (333, 500, 256, 0x32c5d0457e0bfb3e),
    (257, 1031, 64, 0x7b082fdd83497f16),
    (1023, 515, 128, 0x6e94ba29258f0e6a),
    (64, 64, 64, 0x4d0ffdb180c71374),
    (33, 47, 64, 0x9dc265aa4cf2dcd2),
    (1, 1, 8, 0x825c9ad5d010b325),
    (1, 60, 16, 0x94c30926390be9a5),
    (60, 1, 16, 0x9cd906dad2864c85),
    (5, 3, 2, 0x91dbb8703eae1d58),
    (131, 65, 32, 0xa69198ed028585ee),
];

#[test]
fn crops_of_the_goldens_equal_pillows() {
    ddt_parity::check("center_crop").unwrap();
}

#[test]
fn crops_of_noise_equal_pillows_to_the_last_bit() {
    for &(width, height, size, want) in PILLOW {
        let crop = center_crop(&noise(width, height), size).unwrap();
        assert_eq!(fnv1a(crop.as_bytes()), want, "{width} x {height} to {size}");
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn the_largest_shapes_take_little() {
    // Scaled as a whole, these would be 8192 pixels by half a billion.
    for (width, height) in [(1, 65_535), (65_535, 1)] {
        let crop = center_crop(&noise(width, height), 8192).unwrap();
        assert_eq!((crop.width(), crop.height()), (8192, 8192));
    }
    for size in [0, 8193, u32::MAX] {
        assert!(center_crop(&noise(2, 2), size).unwrap_err().to_string().contains("1 to 8192 pixels"));
    }
}

proptest! {
    #[test]
    fn a_crop_is_a_square_and_keeps_a_plain_colour(
        (width, height) in prop_oneof![
            (1_u32..300, 1_u32..300),
            (Just(1_u32), 1_u32..3000),
            (1_u32..3000, Just(1_u32)),
        ],
        size in 1_u32..80,
        colour in any::<[u8; 3]>(),
    ) {
        let plain = colour.repeat((width * height) as usize);
        let crop = center_crop(&Rgb8::new(width, height, plain).unwrap(), size).unwrap();
        prop_assert_eq!((crop.width(), crop.height()), (size, size));
        prop_assert!(crop.as_bytes().chunks_exact(3).all(|it| it == colour));
    }

    #[test]
    fn an_image_of_the_size_is_its_own_crop(size in 1_u32..60) {
        let image = noise(size, size);
        prop_assert_eq!(center_crop(&image, size).unwrap(), image);
    }
}
