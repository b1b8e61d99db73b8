//! Errors: bytes that are not an image, folders that are not a dataset.

use std::{io, path::PathBuf};

/// Why bytes are not an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No image, or one of a format or kind that is not decoded.
    #[error("expected a JPEG, PNG, WebP or BMP, got {got}")]
    Unsupported {
        /// The value found instead.
        got: String,
    },
    /// A file or image beyond its [`Limits`](crate::Limits).
    #[error("{got}, the limit is {limit}")]
    TooLarge {
        /// The size found.
        got: String,
        /// The limit, with its unit.
        limit: String,
    },
    /// A file that ends before its image does.
    #[error("the {format} file is cut off, its image is incomplete")]
    Truncated {
        /// Name of the format.
        format: &'static str,
    },
    /// A file whose contents contradict its format.
    #[error("damaged {format}: {reason}")]
    Damaged {
        /// Name of the format.
        format: &'static str,
        /// The decoder's message.
        reason: String,
    },
    /// Sizes that make no image or no crop.
    #[error("expected {expected}, got {got}")]
    Size {
        /// The size that an image or crop needs.
        expected: String,
        /// The value given.
        got: String,
    },
}

/// Why a folder of images cannot be listed or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or folder that cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file that is not an image within the limits; a loader may skip it.
    #[error("{}: {reason}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: ImageError,
    },
    /// A folder or class list that is not laid out as a dataset.
    #[error("{}: {problem}", path.display())]
    Layout {
        /// Folder or file.
        path: PathBuf,
        /// The problem: expected, found, and the remedy.
        problem: String,
    },
    /// An option, index or class that does not exist.
    #[error("expected {expected}, got {got}")]
    Argument {
        /// The expected value.
        expected: String,
        /// The value given.
        got: String,
    },
    /// The system gives no further thread.
    #[error("cannot start a loader thread")]
    Thread(#[source] io::Error),
}
