//! JPEG, baseline and progressive.

use zune_jpeg::{
    JpegDecoder,
    errors::DecodeErrors,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

use super::Limits;
use crate::{error::ImageError, rgb8::Rgb8};

const FORMAT: &str = "JPEG";
/// The format's own bound on a side.
const MAX_SIDE: usize = 65_535;

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Rgb8, ImageError> {
    let lenient = DecoderOptions::default()
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .set_strict_mode(false);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), lenient);
    decoder.decode_headers().map_err(|it| header_error(bytes, &it))?;
    let (width, height) = decoder.dimensions().unwrap_or((0, 0));
    let (width, height) = (width as u32, height as u32);
    limits.check(width, height)?;
    match decoder.input_colorspace() {
        Some(
            ColorSpace::Luma | ColorSpace::YCbCr | ColorSpace::RGB | ColorSpace::CMYK | ColorSpace::YCCK,
        ) => {}
        _ => return Err(ImageError::Unsupported { what: "a JPEG of unusual colours" }),
    }
    if !has_end(bytes) {
        return Err(ImageError::Truncated { format: FORMAT });
    }
    // Headers of real photos carry stray bytes that change nothing. In compressed data leniency would mean
    // a picture that is grey from the damage on.
    decoder.set_options(lenient.set_strict_mode(true));
    let mut pixels = vec![0; 3 * width as usize * height as usize];
    decoder.decode_into(&mut pixels).map_err(|it| damaged(&it))?;
    Rgb8::new(width, height, pixels)
}

/// Whether an end-of-image marker follows the first start of scan.
///
/// Compressed data never holds the marker's two bytes, since it stuffs a zero after each 0xff; a thumbnail
/// has its own, but in the headers.
fn has_end(bytes: &[u8]) -> bool {
    scan(bytes).is_some_and(|data| data.windows(2).rev().any(|it| it == [0xff, 0xd9]))
}

/// What follows the first start-of-scan marker.
fn scan(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(2..)?;
    loop {
        // Stray bytes and fill bytes may stand before a marker.
        let marker = rest.windows(2).position(|it| it[0] == 0xff && !matches!(it[1], 0 | 0xff))?;
        let code = rest[marker + 1];
        rest = &rest[marker + 2..];
        match code {
            0xda => return Some(rest),
            0x01 | 0xd0..=0xd9 => {} // without a length
            _ => {
                let length = usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]));
                rest = rest.get(length.max(2)..)?;
            }
        }
    }
}

/// Headers that cannot be read in a file without its end are those of a file that was cut off.
fn header_error(bytes: &[u8], error: &DecodeErrors) -> ImageError {
    if has_end(bytes) { damaged(error) } else { ImageError::Truncated { format: FORMAT } }
}

fn damaged(error: &DecodeErrors) -> ImageError {
    ImageError::Damaged { format: FORMAT, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_marker_of_a_thumbnail_is_not_the_images() {
        let thumbnail = [0xff, 0xd8, 0xff, 0xe1, 0, 6, 0xff, 0xd9, 0, 0, 0xff, 0xda, 0, 2];
        assert!(!has_end(&[thumbnail.as_slice(), &[1, 2, 3]].concat()));
        assert!(has_end(&[thumbnail.as_slice(), &[1, 2, 0xff, 0xd9, 9]].concat()));
        for cut in 0..thumbnail.len() {
            assert!(!has_end(&thumbnail[..cut]));
        }
    }
}
