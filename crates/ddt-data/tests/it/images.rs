//! Images for tests.

use std::{fs, io::Cursor, path::Path};

use ddt_data::Rgb8;

/// Synthetic noise: the high byte of splitmix64's output for 1, 2, 3, ...
pub(crate) fn noise(width: u32, height: u32) -> Rgb8 {
    let byte = |i: u64| {
        let z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 56) as u8
    };
    let count = u64::from(width) * u64::from(height) * 3;
    Rgb8::new(width, height, (1..=count).map(byte).collect()).unwrap()
}

/// A smooth picture that depends on `seed`.
pub(crate) fn gradient(width: u32, height: u32, seed: u8) -> image::RgbImage {
    image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, seed.wrapping_mul(17)])
    })
}

pub(crate) fn encode(picture: impl Into<image::DynamicImage>, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

pub(crate) fn jpeg(width: u32, height: u32, seed: u8) -> Vec<u8> {
    encode(gradient(width, height, seed), image::ImageFormat::Jpeg)
}

/// Writes a file and the folders above it.
pub(crate) fn write(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Mean and largest difference.
pub(crate) fn difference(got: &[u8], want: &[u8]) -> (f64, u8) {
    assert_eq!(got.len(), want.len());
    let each = || got.iter().zip(want).map(|(a, b)| a.abs_diff(*b));
    (each().map(f64::from).sum::<f64>() / got.len() as f64, each().max().unwrap_or(0))
}
