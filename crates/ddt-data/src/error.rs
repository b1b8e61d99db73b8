//! Errors: bytes that are not an image, folders that are not a dataset.

use std::{io, path::PathBuf};

/// Why bytes are not an image within the limits, or make no crop: what was expected, and what was found.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ImageError(pub(crate) String);

impl ImageError {
    /// An image of a format or kind that is not decoded, or none.
    pub(crate) fn unsupported(got: impl AsRef<str>) -> Self {
        Self(format!("expected a JPEG, PNG, WebP or BMP, got {}", got.as_ref()))
    }

    /// A file that ends before its image does.
    pub(crate) fn truncated(format: &str) -> Self {
        Self(format!("the {format} file is cut off, its image is incomplete"))
    }

    /// A file whose contents contradict its format.
    pub(crate) fn damaged(format: &str, reason: impl ToString) -> Self {
        Self(format!("damaged {format}: {}", reason.to_string()))
    }
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
