//! Downloading into the hub's local cache.

use std::error::Error;
use std::path::{Path, PathBuf};

use ddt_files::{FileError, sha256_file};
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::{HFClient, HFError, split_id};

use super::{FileSize, HubError, HubOptions, WeightsEntry, find_cached};

/// Attempts after a first failure of the network; the waits between them add up to about a second.
const RETRIES: usize = 2;

/// Bytes of a download so far, and in all (zero while that is unknown).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received.
    pub received: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// The path of an entry in the local cache, downloaded first if it is not there.
///
/// Blocks until the file is complete; `progress` is called from another thread.
/// What was downloaded is compared with the entry's exact size and SHA-256, where it has them.
/// All settings are those of `options`: the environment is read by [`HubOptions::from_env`] alone, but
/// for a token, which is looked for there if `options` has none.
///
/// # Errors
///
/// [`HubError::Offline`] without a look at the network if `options` forbid it, [`HubError::Download`]
/// if the network or the hub fails, [`HubError::Size`] and [`HubError::Sha256`] for a wrong file.
pub fn fetch(
    entry: &WeightsEntry,
    options: &HubOptions,
    progress: impl Fn(Progress) + Send + Sync + 'static,
) -> Result<PathBuf, HubError> {
    let &WeightsEntry { repository, file, .. } = entry;
    if let Some(path) = find_cached(entry, options) {
        return Ok(path);
    }
    if options.offline {
        return Err(HubError::Offline { repository, file, cache: options.cache.clone() });
    }
    let path = download(entry, options, progress).map_err(|error| HubError::Download {
        repository,
        file,
        endpoint: options.endpoint.clone(),
        cause: chain(&error),
    })?;
    verify(entry, &path).inspect_err(|_| discard(&path))?;
    Ok(path)
}

fn download(
    entry: &WeightsEntry,
    options: &HubOptions,
    progress: impl Fn(Progress) + Send + Sync + 'static,
) -> Result<PathBuf, HFError> {
    let mut client = HFClient::builder()
        .endpoint(&options.endpoint)
        .cache_dir(&options.cache)
        .retry_max_attempts(RETRIES)
        .user_agent(concat!("ddt/", env!("CARGO_PKG_VERSION")));
    if let Some(token) = &options.token {
        client = client.token(token);
    }
    let (owner, name) = split_id(entry.repository);
    let repository = client.build_sync()?.model(owner, name);
    let download = repository.download_file().filename(entry.file).revision(entry.revision);
    download.progress(Handler(progress)).send()
}

/// Turns the client's events into [`Progress`].
struct Handler<F>(F);

impl<F: Fn(Progress) + Send + Sync> ProgressHandler for Handler<F> {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        match event {
            DownloadEvent::Start { total_bytes, .. } => {
                (self.0)(Progress { received: 0, total: *total_bytes });
            }
            DownloadEvent::Progress { files } => {
                for file in files {
                    (self.0)(Progress { received: file.bytes_completed, total: file.total_bytes });
                }
            }
            DownloadEvent::AggregateProgress { bytes_completed, total_bytes, .. } => {
                (self.0)(Progress { received: *bytes_completed, total: *total_bytes });
            }
            DownloadEvent::Complete => {}
        }
    }
}

fn verify(entry: &WeightsEntry, path: &Path) -> Result<(), HubError> {
    let got = std::fs::metadata(path).map_err(FileError::io("read", path))?.len();
    match entry.size {
        FileSize::Exact(expected) if got != expected => {
            return Err(HubError::Size { path: path.to_owned(), expected, got });
        }
        _ => {}
    }
    let Some(expected) = entry.sha256 else { return Ok(()) };
    let got = sha256_file(path)?;
    if got == expected { Ok(()) } else { Err(HubError::Sha256 { path: path.to_owned(), expected, got }) }
}

/// Removes a wrong file and the link to it, so that the next attempt starts afresh.
fn discard(path: &Path) {
    let blob = std::fs::canonicalize(path);
    for path in [Ok(path.to_owned()), blob].into_iter().flatten() {
        // The error that led here is the one to report.
        let _ = std::fs::remove_file(path);
    }
}

/// An error and its causes, from the outside in.
fn chain(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !message.contains(&text) {
            message += &format!(": {text}");
        }
        source = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::SD_VAE_FT_EMA;
    use std::time::{Duration, Instant};

    fn options(cache: &Path, offline: bool) -> HubOptions {
        // Nothing listens on the discard port.
        let endpoint = "http://127.0.0.1:9".to_owned();
        HubOptions { cache: cache.to_owned(), endpoint, token: None, offline }
    }

    #[test]
    fn a_cached_file_is_returned_although_the_hub_is_away() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--stabilityai--sd-vae-ft-ema/snapshots");
        let path = folder.join(SD_VAE_FT_EMA.revision).join(SD_VAE_FT_EMA.file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "weights").unwrap();
        for offline in [true, false] {
            let found = fetch(&SD_VAE_FT_EMA, &options(cache.path(), offline), |_| ()).unwrap();
            assert_eq!(found, path);
        }
    }

    #[test]
    fn offline_says_so_and_names_the_ways_out() {
        let cache = tempfile::tempdir().unwrap();
        let error = fetch(&SD_VAE_FT_EMA, &options(cache.path(), true), |_| ()).unwrap_err();
        assert!(matches!(error, HubError::Offline { .. }), "{error}");
        for way_out in ["HF_HUB_OFFLINE", "--weights PATH", "demo weights"] {
            assert!(error.to_string().contains(way_out), "{error}");
        }
    }

    #[test]
    fn an_unreachable_hub_is_a_prompt_error_that_names_the_ways_out() {
        let cache = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let error = fetch(&SD_VAE_FT_EMA, &options(cache.path(), false), |_| ()).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert!(matches!(error, HubError::Download { .. }), "{error}");
        for part in ["127.0.0.1:9", "HF_ENDPOINT", "--weights PATH", "demo weights"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn an_endpoint_that_is_no_address_is_an_error() {
        let cache = tempfile::tempdir().unwrap();
        let options = HubOptions { endpoint: "not an address".into(), ..options(cache.path(), false) };
        assert!(matches!(fetch(&SD_VAE_FT_EMA, &options, |_| ()), Err(HubError::Download { .. })));
    }

    #[test]
    fn a_wrong_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let entry = |size, sha256| WeightsEntry { size, sha256: Some(sha256), ..SD_VAE_FT_EMA };
        verify(&entry(FileSize::Exact(3), abc), &path).unwrap();
        verify(&entry(FileSize::About(9), abc), &path).unwrap();
        let size = verify(&entry(FileSize::Exact(4), abc), &path);
        assert!(matches!(size, Err(HubError::Size { expected: 4, got: 3, .. })));
        assert!(matches!(verify(&entry(FileSize::Exact(3), "00"), &path), Err(HubError::Sha256 { .. })));
        discard(&path);
        assert!(!path.exists());
    }
}
