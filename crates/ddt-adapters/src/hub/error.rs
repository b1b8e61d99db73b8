//! Why weights did not arrive, and what to do about it.

use std::path::PathBuf;

use ddt_files::FileError;

/// Why a file of the hub could not be had.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum HubError {
    /// The file is not in the cache, and no socket may be opened.
    #[error(
        "{repository}/{file} is not in {}, and HF_HUB_OFFLINE forbids asking the hub; unset it, \
         set HF_HUB_CACHE to the cache that has the file, pass --weights PATH, or use the demo weights",
        cache.display()
    )]
    Offline {
        /// `owner/name` on the hub.
        repository: &'static str,
        /// Path inside the repository.
        file: &'static str,
        /// The cache that was looked into.
        cache: PathBuf,
    },
    /// The hub could not be reached, or refused.
    #[error(
        "cannot download {repository}/{file} from {endpoint}: {cause}; try again, set HF_ENDPOINT to a \
         mirror, pass --weights PATH to a file you have, or use the demo weights"
    )]
    Download {
        /// `owner/name` on the hub.
        repository: &'static str,
        /// Path inside the repository.
        file: &'static str,
        /// The hub or mirror that was asked.
        endpoint: String,
        /// What went wrong, from the outside in.
        cause: String,
    },
    /// The file that arrived is of another size; it was removed from the cache.
    #[error("expected {expected} bytes of {}, got {got}, and removed it; try again, or another HF_ENDPOINT", path.display())]
    Size {
        /// Where the file was.
        path: PathBuf,
        /// The entry's size.
        expected: u64,
        /// The file's size.
        got: u64,
    },
    /// The file that arrived holds other bytes; it was removed from the cache.
    #[error("expected SHA-256 {expected} of {}, got {got}, and removed it; try again, or another HF_ENDPOINT", path.display())]
    Sha256 {
        /// Where the file was.
        path: PathBuf,
        /// The entry's hash.
        expected: &'static str,
        /// The file's hash.
        got: String,
    },
    /// The file that arrived could not be read back.
    #[error(transparent)]
    Read(#[from] FileError),
}
