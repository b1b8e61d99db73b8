//! Bytes to pixels.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{error::ImageError, rgb8::Rgb8};

mod jpeg;
mod png;

/// Bounds that a file must keep, so that no file takes more memory than planned for.
///
/// Decoding takes at most about 12 bytes a pixel (progressive JPEG, whose coefficients are kept).
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
    fn check(&self, width: u32, height: u32) -> Result<(), ImageError> {
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(ImageError::TooManyPixels { width, height, max_pixels: self.max_pixels });
        }
        Ok(())
    }
}

/// Decodes a JPEG or PNG to red, green and blue bytes.
///
/// The format is told by the first bytes, not by a name. As ADM's `convert("RGB")` does: grey is repeated,
/// palettes are looked up, alpha is dropped (colours under transparent pixels stay), CMYK is taken as Adobe
/// writes it, colour profiles and EXIF orientation are ignored, an animation is its first picture. 16-bit
/// samples keep their high byte; here Pillow differs for grey ones, which it clips to white.
///
/// A JPEG without its end, or whose compressed data holds what is no code, is an error and not a picture that
/// is grey from there on. Damage that leaves valid codes goes unnoticed: the format has no checksum. PNG has.
///
/// # Errors
/// [`ImageError`] for anything that is not a whole JPEG or PNG within the limits. No bytes make it panic.
pub fn decode_rgb8(bytes: &[u8], limits: &Limits) -> Result<Rgb8, ImageError> {
    let length = bytes.len() as u64;
    if length > limits.max_bytes {
        return Err(ImageError::TooManyBytes { bytes: length, max_bytes: limits.max_bytes });
    }
    let decode = match bytes {
        [] => return Err(ImageError::Empty),
        [0xff, 0xd8, ..] => jpeg::decode,
        [0x89, b'P', b'N', b'G', ..] => png::decode,
        _ => return Err(unknown(bytes)),
    };
    // The decoders are others' code that untrusted files pass through.
    catch_unwind(AssertUnwindSafe(|| decode(bytes, limits))).unwrap_or(Err(ImageError::DecoderPanicked))
}

/// Names a format that is known but not decoded.
fn unknown(bytes: &[u8]) -> ImageError {
    let what = match bytes {
        [b'G', b'I', b'F', b'8', ..] => "a GIF",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "a WebP",
        [b'B', b'M', ..] => "a BMP",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "a TIFF",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "an AVIF, HEIC or video file",
        _ => return ImageError::NotAnImage { first: bytes[..bytes.len().min(8)].to_vec() },
    };
    ImageError::Unsupported { what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_decoded_is_named() {
        let decode = |bytes: &[u8]| decode_rgb8(bytes, &Limits::default()).unwrap_err().to_string();
        assert!(decode(b"").contains("empty"));
        assert!(decode(b"GIF89a........").contains("a GIF"));
        assert!(decode(b"RIFF....WEBPVP8 ").contains("a WebP"));
        assert!(decode(b"\0\0\0\x20ftypavif").contains("AVIF"));
        assert!(decode(b"hello").contains("first bytes"));
        let limits = Limits { max_bytes: 2, ..Limits::default() };
        assert!(matches!(decode_rgb8(b"abc", &limits), Err(ImageError::TooManyBytes { bytes: 3, .. })));
    }
}
