//! PNG of every colour type and depth.

use std::io::{Cursor, ErrorKind};

use png::{BitDepth, ColorType, Decoder, DecodingError, Transformations};

use super::Limits;
use crate::{error::ImageError, rgb8::Rgb8};

const FORMAT: &str = "PNG";
/// Memory for everything but pixels, in bytes.
const BESIDE_PIXELS: usize = 16 << 20;

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Rgb8, ImageError> {
    let mut decoder = Decoder::new(Cursor::new(bytes));
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    // To 8 bits: palettes and small depths are expanded, of 16 bits the high byte is kept.
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let header = decoder.read_header_info().map_err(error)?;
    let (width, height) = (header.width, header.height);
    limits.check(width, height)?;
    let pixels = width as usize * height as usize;
    // Reading takes what an image of this size needs at most (16-bit RGBA), and no more.
    decoder.set_limits(png::Limits { bytes: pixels.saturating_mul(8).saturating_add(BESIDE_PIXELS) });
    let mut reader = decoder.read_info().map_err(error)?;
    let size = reader.output_buffer_size().ok_or(ImageError::TooManyPixels {
        width,
        height,
        max_pixels: limits.max_pixels,
    })?;
    let mut samples = vec![0; size];
    let frame = reader.next_frame(&mut samples).map_err(error)?;
    if (frame.width, frame.height, frame.bit_depth) != (width, height, BitDepth::Eight) {
        return Err(ImageError::Unsupported { what: "a PNG whose first picture does not fill it" });
    }
    let rgb = match frame.color_type {
        ColorType::Rgb => samples,
        ColorType::Grayscale => samples.iter().flat_map(|it| [*it; 3]).collect(),
        ColorType::GrayscaleAlpha => samples.chunks_exact(2).flat_map(|it| [it[0]; 3]).collect(),
        ColorType::Rgba => samples.chunks_exact(4).flat_map(|it| [it[0], it[1], it[2]]).collect(),
        ColorType::Indexed => return Err(ImageError::Unsupported { what: "a PNG without its palette" }),
    };
    Rgb8::new(width, height, rgb)
}

fn error(error: DecodingError) -> ImageError {
    match error {
        DecodingError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => {
            ImageError::Truncated { format: FORMAT }
        }
        other => ImageError::Damaged { format: FORMAT, reason: other.to_string() },
    }
}
