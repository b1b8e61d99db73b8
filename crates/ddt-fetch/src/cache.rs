//! How the cache keeps a file: bytes under `blobs`, a link to them under `snapshots`, the branch under `refs`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use ddt_files::{atomic_write, sha256_file};
use ddt_hub::{Hub, HubFile};

use crate::{error::FetchError, http::Announced};

/// The places of one file.
pub(crate) struct Entry {
    /// The complete bytes.
    blob: PathBuf,
    /// The bytes so far.
    pub(crate) incomplete: PathBuf,
    /// The path that programs open.
    snapshot: PathBuf,
    /// Holds the commit that the branch points to.
    reference: PathBuf,
    lock: PathBuf,
}

impl Entry {
    pub(crate) fn new(hub: &Hub, file: &HubFile, announced: &Announced) -> Self {
        let repository = hub.repository_folder(file);
        let Announced { commit, etag, .. } = announced;
        let name = repository.file_name().unwrap_or_default();
        Self {
            blob: repository.join("blobs").join(etag),
            incomplete: repository.join("blobs").join(format!("{etag}.incomplete")),
            snapshot: repository.join("snapshots").join(commit).join(file.file()),
            reference: repository.join("refs").join(file.revision()),
            lock: hub.cache.join(".locks").join(name).join(format!("{etag}.lock")),
        }
    }

    /// Waits until no other process downloads the same bytes, by the lock that `huggingface_hub` uses too.
    pub(crate) fn lock(&self) -> Result<File, FetchError> {
        let lock = || {
            make_parent(&self.lock)?;
            let file = File::options().create(true).append(true).open(&self.lock)?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(at(&self.lock))
    }

    /// Whether the bytes are there, perhaps by another process.
    pub(crate) fn has_blob(&self) -> bool {
        self.blob.is_file()
    }

    /// Opens the file of bytes so far, to append to it or to start over.
    pub(crate) fn open_incomplete(&self) -> Result<File, FetchError> {
        let open = || {
            make_parent(&self.incomplete)?;
            File::options().create(true).append(true).open(&self.incomplete)
        };
        open().map_err(at(&self.incomplete))
    }

    /// Compares the bytes with the hub's hash and gives them their name.
    pub(crate) fn complete(&self, file: &HubFile, announced: &Announced) -> Result<(), FetchError> {
        let expected = &announced.etag;
        // Small files are named by git's own hash, which is of other bytes.
        if expected.len() == 64 {
            let hash = sha256_file(&self.incomplete).map_err(io::Error::other);
            let got = hash.map_err(at(&self.incomplete))?;
            if got != *expected {
                fs::remove_file(&self.incomplete).map_err(at(&self.incomplete))?;
                return Err(FetchError::Checksum { file: file.to_string(), expected: expected.clone(), got });
            }
        }
        fs::rename(&self.incomplete, &self.blob).map_err(at(&self.blob))
    }

    /// Makes the bytes known under the file's name and the branch.
    pub(crate) fn link(&self, announced: &Announced) -> Result<PathBuf, FetchError> {
        let link = || {
            make_parent(&self.snapshot)?;
            if !self.snapshot.exists() {
                // A link to bytes that are gone.
                if self.snapshot.is_symlink() {
                    fs::remove_file(&self.snapshot)?;
                }
                link_or_move(&self.blob, &self.snapshot)?;
            }
            Ok(())
        };
        link().map_err(at(&self.snapshot))?;
        let refer = || {
            make_parent(&self.reference)?;
            let write = atomic_write(&self.reference, |file| file.write_all(announced.commit.as_bytes()));
            write.map_err(io::Error::other)
        };
        // A commit is found without.
        if self.reference.file_name().is_some_and(|name| name != announced.commit.as_str()) {
            refer().map_err(at(&self.reference))?;
        }
        Ok(self.snapshot.clone())
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

#[cfg(unix)]
fn link_or_move(blob: &Path, snapshot: &Path) -> io::Result<()> {
    // Relative, so that the cache can be moved: out of `snapshots/commit` and the file's own folders.
    let depth = snapshot.components().count() - blob.components().count() + 1;
    let name = blob.file_name().unwrap_or_default();
    let target = std::iter::repeat_n("..", depth).collect::<PathBuf>().join("blobs").join(name);
    std::os::unix::fs::symlink(target, snapshot)
}

#[cfg(not(unix))]
fn link_or_move(blob: &Path, snapshot: &Path) -> io::Result<()> {
    // Links need rights that users seldom have there; huggingface_hub moves the file too.
    fs::rename(blob, snapshot)
}

fn at(path: &Path) -> impl Fn(io::Error) -> FetchError + use<> {
    let path = path.to_owned();
    move |source| FetchError::Cache { path: path.clone(), source }
}
