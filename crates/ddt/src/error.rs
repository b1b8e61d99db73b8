//! Errors of making images.

use std::{error::Error as StdError, path::PathBuf};

use ddt_hub::Release;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of another library, of any kind.
type Source = Box<dyn StdError + Send + Sync>;

/// Error of this crate.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The watcher of [`Pipeline::generate`](crate::Pipeline::generate) asked to stop.
    #[error("stopped; no unfinished image was written")]
    Cancelled,
    /// Published weights are not in the hub's local cache.
    #[error("{file} is not in the hub's cache {}; fetch it with: ddt fetch {release}", cache.display())]
    NotFetched {
        /// The network that needs the file.
        release: Release,
        /// Repository and file.
        file: String,
        /// The cache that was searched.
        cache: PathBuf,
    },
    /// Settings that are invalid or do not fit the weights.
    #[error("{0}")]
    Invalid(String),
    /// A failure with its context.
    #[error("{context}")]
    While {
        /// The failed operation, or the setting that caused it.
        context: String,
        /// The failure.
        source: Source,
    },
    /// A failure of another library that needs no explanation.
    #[error(transparent)]
    Library(Source),
}

macro_rules! from_library {
    ($($error:ty),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::Library(error.into())
            }
        }
    )*};
}

from_library!(
    candle_core::Error,
    ddt_adapters::LoadError,
    ddt_adapters::Rgb8Error,
    ddt_files::FileError,
    ddt_flow::FlowError,
    ddt_model::ConfigError,
    ddt_model::ModelError,
    ddt_picture::PictureError,
    ddt_sharing::PlanError,
    serde_json::Error
);

/// An [`Error::Invalid`].
pub(crate) fn invalid<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::Invalid(message.into()))
}

/// Adds the failed operation to an error.
pub(crate) trait Context<T> {
    /// [`Error::While`] with `context`, which does not repeat the failure's own words.
    fn context(self, context: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<Source>> Context<T> for std::result::Result<T, E> {
    fn context(self, context: impl Into<String>) -> Result<T> {
        self.map_err(|error| Error::While { context: context.into(), source: error.into() })
    }
}
