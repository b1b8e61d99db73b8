//! Errors of pictures.

use std::path::PathBuf;

/// Why a picture cannot be made, read or written.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum PictureError {
    /// Bytes that are no image of the given size.
    #[error("expected {width} x {height} x 3 bytes and no empty side, got {bytes} bytes")]
    Shape {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// Number of bytes.
        bytes: usize,
    },
    /// A picture that viewers or memory cannot hold.
    #[error(
        "a picture of {width} x {height} pixels: expected 1 to {} pixels a side and at most {} megapixels; \
         use fewer or smaller images",
        crate::rgb8::MAX_SIDE,
        crate::rgb8::MAX_PIXELS / 1_000_000
    )]
    Size {
        /// In pixels.
        width: usize,
        /// In pixels.
        height: usize,
    },
    /// Images, labels or values that do not fit together.
    #[error("expected {expected}, got {got}")]
    Content {
        /// The content that would fit.
        expected: String,
        /// The value given.
        got: String,
    },
    /// A file that is not a PNG as this crate writes them.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The decoder's or the system's words.
        reason: String,
    },
    /// A PNG encoder that failed.
    #[error("cannot encode the picture as PNG")]
    Encode(#[from] png::EncodingError),
}

/// A [`PictureError::Content`].
pub(crate) fn content(expected: impl Into<String>, got: impl Into<String>) -> PictureError {
    PictureError::Content { expected: expected.into(), got: got.into() }
}
