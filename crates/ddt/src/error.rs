//! Errors of making images.

use std::{error::Error as StdError, fmt, path::PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of another library, of any kind.
type Source = Box<dyn StdError + Send + Sync>;

/// Error of this crate.
///
/// `Debug` is the message and its causes in words, which is what a program that returns an error from `main` prints.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The watcher of [`Pipeline::generate`](crate::Pipeline::generate) asked to stop.
    #[error("stopped; no unfinished image was written")]
    Cancelled,
    /// Published weights are not in the hub's local cache.
    #[error("{file} is not in the hub's cache {}; fetch it with: ddt fetch {name}", cache.display())]
    NotFetched {
        /// The network that needs the file, or the autoencoder that it is part of.
        name: String,
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

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = self.source();
        while let Some(it) = cause {
            write!(f, ": {it}")?;
            cause = it.source();
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_prints_words() {
        let failed: std::result::Result<(), _> = Err(std::io::Error::other("the disk is gone"));
        let error = failed.context("reading a.png").context("--redo").unwrap_err();
        assert_eq!(format!("{error:?}"), "--redo: reading a.png: the disk is gone");
    }
}
