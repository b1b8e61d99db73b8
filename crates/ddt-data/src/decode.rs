//! Decoding: bytes or files to pixels.

use std::{
    fs::File,
    io::{self, Cursor, ErrorKind, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use ddt_picture::Rgb8;
use image::{
    DynamicImage, ImageDecoder,
    codecs::{bmp::BmpDecoder, webp::WebPDecoder},
};
use png::{BitDepth, ColorType, Transformations};
use zune_jpeg::{
    JpegDecoder,
    errors::DecodeErrors,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

use crate::error::{DataError, ImageError};

/// Bounds on a file, so that no file takes more memory than planned for.
///
/// Decoding takes at most about 12 bytes per pixel (progressive JPEG, whose coefficients are kept).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size of a file, in bytes; 128 MiB by default.
    pub max_bytes: u64,
    /// Width times height; 89,478,485 by default, where Pillow begins to warn of decompression bombs.
    pub max_pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 128 << 20, max_pixels: 89_478_485 }
    }
}

impl Limits {
    fn check_bytes(&self, bytes: u64) -> Result<(), ImageError> {
        if bytes <= self.max_bytes {
            return Ok(());
        }
        Err(ImageError(format!("the file has {bytes} bytes, the limit is {}", self.max_bytes)))
    }

    fn check_pixels(&self, width: u32, height: u32) -> Result<(), ImageError> {
        if u64::from(width) * u64::from(height) <= self.max_pixels {
            return Ok(());
        }
        let limit = self.max_pixels;
        Err(ImageError(format!("the image is {width} x {height}, the limit is {limit} pixels")))
    }
}

/// Reads and decodes a file as [`decode_rgb8`] does.
///
/// # Errors
/// [`DataError::Io`] when it cannot be read, [`DataError::Layout`] for a pipe or a device, and
/// [`DataError::Image`], which names the file, for anything but an image within the limits.
pub fn read_rgb8(path: &Path, limits: &Limits) -> Result<Rgb8, DataError> {
    let not_an_image = |reason| DataError::Image { path: path.to_owned(), reason };
    let metadata = path.metadata().map_err(cannot_read(path))?;
    // Opening a pipe would wait for a writer.
    if !metadata.is_file() {
        return Err(not_a_file(path));
    }
    limits.check_bytes(metadata.len()).map_err(not_an_image)?;
    let file = File::open(path).map_err(cannot_read(path))?;
    let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
    // A file that grows meanwhile stays bounded; decoding notices one byte too many.
    file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(cannot_read(path))?;
    decode_rgb8(&bytes, limits).map_err(not_an_image)
}

/// Decodes a JPEG, PNG, WebP or BMP to red, green and blue bytes.
///
/// The first bytes tell the format, not a name. As ADM's `convert("RGB")` does: grey is repeated, palettes
/// are looked up, alpha is dropped (colours under transparent pixels stay), CMYK is taken as Adobe writes it,
/// colour profiles and EXIF orientation are ignored, an animation is its first picture. 16-bit samples keep
/// their high byte; here Pillow differs for grey ones, which it clips to white.
///
/// A JPEG without its end, or with an invalid code in its compressed data, is an error and not a picture that
/// is grey from there on. Damage that leaves valid codes goes unnoticed: the format has no checksum. PNG has.
///
/// # Errors
/// [`ImageError`] for anything but a whole image within the limits. No bytes make it panic.
pub fn decode_rgb8(bytes: &[u8], limits: &Limits) -> Result<Rgb8, ImageError> {
    limits.check_bytes(bytes.len() as u64)?;
    let (format, decode): (_, Decoder) = match bytes {
        [0xff, 0xd8, ..] => (JPEG, jpeg),
        [0x89, b'P', b'N', b'G', ..] => (PNG, png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => (WEBP, webp),
        [b'B', b'M', ..] => (BMP, bmp),
        _ => return Err(ImageError::unsupported(describe(bytes))),
    };
    // The decoders are third-party code that parses untrusted files.
    let panicked = |_| ImageError::damaged(format, "the decoder panicked");
    catch_unwind(AssertUnwindSafe(|| decode(bytes, limits))).map_err(panicked)?
}

type Decoder = fn(&[u8], &Limits) -> Result<Rgb8, ImageError>;

const JPEG: &str = "JPEG";
const PNG: &str = "PNG";
const WEBP: &str = "WebP";
const BMP: &str = "BMP";

/// The decoders give as many bytes as the image has.
fn rgb(width: u32, height: u32, bytes: Vec<u8>) -> Result<Rgb8, ImageError> {
    Rgb8::new(width, height, bytes).map_err(|it| ImageError(it.to_string()))
}

/// Names known formats that are not decoded.
fn describe(bytes: &[u8]) -> String {
    match bytes {
        [] => "an empty file".to_owned(),
        [b'G', b'I', b'F', b'8', ..] => "a GIF; convert it first".to_owned(),
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "a TIFF; convert it first".to_owned(),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => {
            "an AVIF, HEIC or video file; convert it first".to_owned()
        }
        _ => format!("a file that begins with {:02x?}", &bytes[..bytes.len().min(8)]),
    }
}

/// Baseline and progressive JPEG.
fn jpeg(bytes: &[u8], limits: &Limits) -> Result<Rgb8, ImageError> {
    // The format's own bound on a side.
    const MAX_SIDE: usize = 65_535;
    let damaged = |it: DecodeErrors| ImageError::damaged(JPEG, it);
    let truncated = ImageError::truncated(JPEG);
    let whole = jpeg_has_end(bytes);
    let lenient = DecoderOptions::default()
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .set_strict_mode(false);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), lenient);
    if let Err(error) = decoder.decode_headers() {
        return Err(if whole { damaged(error) } else { truncated });
    }
    let (width, height) = decoder.dimensions().unwrap_or((0, 0));
    let (width, height) = (width as u32, height as u32);
    limits.check_pixels(width, height)?;
    match decoder.input_colorspace() {
        Some(
            ColorSpace::Luma | ColorSpace::YCbCr | ColorSpace::RGB | ColorSpace::CMYK | ColorSpace::YCCK,
        ) => {}
        _ => return Err(ImageError::unsupported("a JPEG of unusual colours")),
    }
    if !whole {
        return Err(truncated);
    }
    // Headers of real photos have harmless stray bytes. In compressed data, lenient decoding would give a
    // picture that is grey from the damage on.
    decoder.set_options(lenient.set_strict_mode(true));
    let mut pixels = vec![0; 3 * width as usize * height as usize];
    decoder.decode_into(&mut pixels).map_err(damaged)?;
    rgb(width, height, pixels)
}

/// Whether an end-of-image marker follows the first start of scan.
///
/// Compressed data never holds the marker's two bytes, since it stuffs a zero after each 0xff; a thumbnail
/// has its own, but in the headers.
fn jpeg_has_end(bytes: &[u8]) -> bool {
    jpeg_scan(bytes).is_some_and(|data| data.windows(2).rev().any(|it| it == [0xff, 0xd9]))
}

/// The bytes after the first start-of-scan marker.
fn jpeg_scan(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(2..)?;
    loop {
        // Stray bytes and fill bytes may precede a marker.
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

/// PNG of every colour type and depth.
fn png(bytes: &[u8], limits: &Limits) -> Result<Rgb8, ImageError> {
    /// Memory for everything but pixels, in bytes.
    const BESIDE_PIXELS: usize = 16 << 20;
    let error = |error: png::DecodingError| match error {
        png::DecodingError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => {
            ImageError::truncated(PNG)
        }
        other => ImageError::damaged(PNG, other),
    };
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    // To 8 bits: palettes and small depths are expanded, 16 bits keep the high byte.
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let header = decoder.read_header_info().map_err(error)?;
    let (width, height) = (header.width, header.height);
    limits.check_pixels(width, height)?;
    let pixels = width as usize * height as usize;
    // As much as an image of this size can need (16-bit RGBA), and no more.
    decoder.set_limits(png::Limits { bytes: pixels.saturating_mul(8).saturating_add(BESIDE_PIXELS) });
    let mut reader = decoder.read_info().map_err(error)?;
    let palette = reader.info().palette.as_ref().map_or(0, |it| it.len());
    // The decoder panics on part of a colour.
    if reader.info().color_type == ColorType::Indexed && (palette % 3 != 0 || !(3..=768).contains(&palette)) {
        let problem = format!("a palette of {palette} bytes, expected 3 for each of 1 to 256 colours");
        return Err(ImageError::damaged(PNG, problem));
    }
    let Some(size) = reader.output_buffer_size() else {
        let got = format!("a PNG of {width} x {height}, too large for this machine");
        return Err(ImageError::unsupported(got));
    };
    let mut samples = vec![0; size];
    let frame = reader.next_frame(&mut samples).map_err(error)?;
    if (frame.width, frame.height, frame.bit_depth) != (width, height, BitDepth::Eight) {
        return Err(ImageError::unsupported("a PNG whose first picture does not fill it"));
    }
    let pixels = match frame.color_type {
        ColorType::Rgb => samples,
        ColorType::Grayscale => samples.iter().flat_map(|it| [*it; 3]).collect(),
        ColorType::GrayscaleAlpha => samples.chunks_exact(2).flat_map(|it| [it[0]; 3]).collect(),
        ColorType::Rgba => samples.chunks_exact(4).flat_map(|it| [it[0], it[1], it[2]]).collect(),
        ColorType::Indexed => return Err(ImageError::unsupported("a PNG without its palette")),
    };
    rgb(width, height, pixels)
}

/// Lossy and lossless WebP.
fn webp(bytes: &[u8], limits: &Limits) -> Result<Rgb8, ImageError> {
    // The header states the size of everything after its first 8 bytes.
    let stated = bytes.get(4..8).map_or(0, |it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]));
    if (bytes.len() as u64) < 8 + u64::from(stated) {
        return Err(ImageError::truncated(WEBP));
    }
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|it| decoding(WEBP, it))?;
    check_frames(bytes.get(12..).unwrap_or_default(), decoder.dimensions())?;
    with_image_crate(WEBP, decoder, limits)
}

/// Checks the sizes of lossy frames: the decoder takes memory for them before it compares them with the image's.
fn check_frames(chunks: &[u8], image: (u32, u32)) -> Result<(), ImageError> {
    let check = |frame: &[u8], expected: (u32, u32)| {
        let [_, _, _, 0x9d, 0x01, 0x2a, a, b, c, d, ..] = *frame else { return Ok(()) };
        let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
        let got = (side(a, b), side(c, d));
        if got == expected && got.0 <= image.0 && got.1 <= image.1 {
            return Ok(());
        }
        Err(ImageError::damaged(
            WEBP,
            format!("a frame of {got:?} pixels in one of {expected:?} of {image:?}"),
        ))
    };
    for (kind, content) in riff_chunks(chunks) {
        match (kind, content) {
            (b"VP8 ", frame) => check(frame, image)?,
            (b"ANMF", [_, _, _, _, _, _, a, b, c, d, e, f, _, _, _, _, frame @ ..]) => {
                let side = |bytes: [u8; 3]| 1 + u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
                let size = (side([*a, *b, *c]), side([*d, *e, *f]));
                let lossy = riff_chunks(frame).filter(|it| it.0 == b"VP8 ");
                lossy.map(|it| it.1).try_for_each(|it| check(it, size))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Chunks of a RIFF file: their kinds and as much of their contents as there is.
fn riff_chunks(mut rest: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (kind, after) = rest.split_first_chunk::<4>()?;
        let (size, after) = after.split_first_chunk::<4>()?;
        let size = u32::from_le_bytes(*size) as usize;
        rest = after.get(size.saturating_add(size % 2)..).unwrap_or_default();
        Some((kind, &after[..size.min(after.len())]))
    })
}

/// BMP of every depth.
fn bmp(bytes: &[u8], limits: &Limits) -> Result<Rgb8, ImageError> {
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(|it| decoding(BMP, it))?;
    with_image_crate(BMP, decoder, limits)
}

fn with_image_crate(
    format: &'static str,
    mut decoder: impl ImageDecoder,
    limits: &Limits,
) -> Result<Rgb8, ImageError> {
    let (width, height) = decoder.dimensions();
    limits.check_pixels(width, height)?;
    let mut bounds = image::Limits::no_limits();
    bounds.max_alloc = Some(limits.max_pixels.saturating_mul(8));
    decoder.set_limits(bounds).map_err(|it| decoding(format, it))?;
    let pixels = DynamicImage::from_decoder(decoder).map_err(|it| decoding(format, it))?;
    rgb(width, height, pixels.into_rgb8().into_raw())
}

fn decoding(format: &'static str, error: image::ImageError) -> ImageError {
    match error {
        image::ImageError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => {
            ImageError::truncated(format)
        }
        other => ImageError::damaged(format, other),
    }
}

/// Adds the path to an error of the system's.
pub(crate) fn cannot_read(path: &Path) -> impl FnOnce(io::Error) -> DataError + '_ {
    move |source| DataError::Io { path: path.to_owned(), source }
}

/// Pipes, sockets and devices.
pub(crate) fn not_a_file(path: &Path) -> DataError {
    DataError::Layout { path: path.to_owned(), problem: "expected a regular file".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_that_are_not_decoded_are_named() {
        let decode = |bytes: &[u8]| decode_rgb8(bytes, &Limits::default()).unwrap_err().to_string();
        assert!(decode(b"").contains("empty"));
        assert!(decode(b"GIF89a........").contains("a GIF"));
        assert!(decode(b"\0\0\0\x20ftypavif").contains("AVIF"));
        assert!(decode(b"II*\0....").contains("TIFF"));
        assert!(decode(b"hello").contains("begins with [68, 65"));
        let limits = Limits { max_bytes: 2, ..Limits::default() };
        let error = decode_rgb8(b"abc", &limits).unwrap_err().to_string();
        assert_eq!(error, "the file has 3 bytes, the limit is 2");
    }

    #[test]
    fn the_end_marker_of_a_thumbnail_is_not_the_images() {
        let thumbnail = [0xff, 0xd8, 0xff, 0xe1, 0, 6, 0xff, 0xd9, 0, 0, 0xff, 0xda, 0, 2];
        assert!(!jpeg_has_end(&[thumbnail.as_slice(), &[1, 2, 3]].concat()));
        assert!(jpeg_has_end(&[thumbnail.as_slice(), &[1, 2, 0xff, 0xd9, 9]].concat()));
        for cut in 0..thumbnail.len() {
            assert!(!jpeg_has_end(&thumbnail[..cut]));
        }
    }
}
