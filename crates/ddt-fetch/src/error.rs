//! Why a file did not arrive, and what to do about it.

use std::{io, path::PathBuf};

use ddt_files::FileError;

/// Why a file of the hub could not be had.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum FetchError {
    /// The file is not in the cache, and no socket may be opened.
    #[error(
        "{file} is not in {}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids asking the hub; \
         unset it, or set HF_HUB_CACHE to the cache that has the file",
        cache.display()
    )]
    Offline {
        /// Repository and file.
        file: String,
        /// The cache that was looked into.
        cache: PathBuf,
    },
    /// The hub answered that there is no such file for this user.
    #[error("{url} answered {status}; {advice}")]
    Refused {
        /// The requested address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The remedy.
        advice: &'static str,
    },
    /// The last attempt failed.
    #[error(
        "cannot download {url}: {reason}, {attempts} attempts in a row; run the same command again to resume, \
         or set HF_ENDPOINT to a mirror"
    )]
    GaveUp {
        /// The requested address.
        url: String,
        /// The last failure.
        reason: String,
        /// Attempts without a byte.
        attempts: u32,
    },
    /// The bytes that arrived are not those that the hub announced; they were removed.
    #[error(
        "expected SHA-256 {expected} of {file}, got {got}, and removed it; try again, or another HF_ENDPOINT"
    )]
    Checksum {
        /// Repository and file.
        file: String,
        /// The hub's hash.
        expected: String,
        /// The hash of what arrived.
        got: String,
    },
    /// The cache could not be read or written.
    #[error(transparent)]
    Cache(#[from] FileError),
    /// No thread could be started.
    #[error("cannot start a thread to download")]
    Thread(#[source] io::Error),
    /// The watcher asked to stop; what has arrived is kept.
    #[error("stopped; run the same command again to resume")]
    Cancelled,
}
