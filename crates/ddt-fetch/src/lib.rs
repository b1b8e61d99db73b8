//! Downloading into the Hugging Face hub's local cache, where all of its tools look.
//!
//! [`fetch`] resumes what an earlier attempt left, tries again with growing pauses, gives up on a server that sends
//! nothing, compares the hub's SHA-256, and puts a file into the cache only when it is complete.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use ddt_fetch::{Patience, fetch};
//! use ddt_hub::{Hub, Release};
//!
//! let file = Release::DdtXl2R256.network();
//! let path = fetch(&Hub::from_env(), &file, &Patience::default(), &mut |progress| {
//!     eprintln!("{progress}");
//!     ControlFlow::Continue(())
//! })?;
//! println!("{}", path.display());
//! # Ok::<(), ddt_fetch::FetchError>(())
//! ```

#![forbid(unsafe_code)]

mod cache;
mod download;
mod error;
mod http;

use std::path::PathBuf;

use ddt_files::FileSystem;
use ddt_hub::{Hub, HubFile};

pub use crate::{
    download::{Progress, Watch},
    error::FetchError,
    http::Patience,
};

/// The path of a file in the local cache, downloaded first if it is not there.
///
/// # Errors
/// [`FetchError::Offline`] if the environment forbids it; [`FetchError::Refused`] where the hub answers with no;
/// [`FetchError::GaveUp`] after the last attempt; [`FetchError::Checksum`] for other bytes than the hub announced;
/// [`FetchError::Cache`] if the cache cannot be written; [`FetchError::Cancelled`] when `watch` breaks.
pub fn fetch(
    hub: &Hub,
    file: &HubFile,
    patience: &Patience,
    watch: &mut Watch<'_>,
) -> Result<PathBuf, FetchError> {
    fetch_on(&FileSystem::default(), hub, file, patience, watch)
}

/// [`fetch`] through another file layer than the real disk's.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_on(
    system: &FileSystem,
    hub: &Hub,
    file: &HubFile,
    patience: &Patience,
    watch: &mut Watch<'_>,
) -> Result<PathBuf, FetchError> {
    if let Some(path) = hub.find(file) {
        return Ok(path);
    }
    if hub.offline {
        return Err(FetchError::Offline { file: file.to_string(), cache: hub.cache.clone() });
    }
    download::download(system, hub, file, patience, watch)
}
