//! How the cache keeps a file: bytes under `blobs`, a link to them under `snapshots`, the branch under `refs`.

use std::path::{Path, PathBuf};

use ddt_files::{DiskFile, FileError, FileSystem, sha256_file};
use ddt_hub::{Hub, HubFile};

use crate::{error::FetchError, http::Announced};

/// The places of one file.
pub(crate) struct Entry {
    system: FileSystem,
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
    pub(crate) fn new(system: &FileSystem, hub: &Hub, file: &HubFile, announced: &Announced) -> Self {
        let repository = hub.repository_folder(file);
        let Announced { commit, etag, .. } = announced;
        let name = repository.file_name().unwrap_or_default();
        Self {
            system: system.clone(),
            blob: repository.join("blobs").join(etag),
            incomplete: repository.join("blobs").join(format!("{etag}.incomplete")),
            snapshot: repository.join("snapshots").join(commit).join(file.file()),
            reference: repository.join("refs").join(file.revision()),
            lock: hub.cache.join(".locks").join(name).join(format!("{etag}.lock")),
        }
    }

    /// Waits until no other process downloads the same bytes, by the lock that `huggingface_hub` uses too.
    pub(crate) fn lock(&self) -> Result<DiskFile, FileError> {
        let file = self.open(&self.lock)?;
        file.lock()?;
        Ok(file)
    }

    fn open(&self, path: &Path) -> Result<DiskFile, FileError> {
        self.make_parent(path)?;
        self.system.open(path)
    }

    fn make_parent(&self, path: &Path) -> Result<(), FileError> {
        path.parent().map_or(Ok(()), |it| self.system.create_folders(it))
    }

    /// Whether the bytes are there, perhaps by another process.
    pub(crate) fn has_blob(&self) -> bool {
        self.blob.is_file()
    }

    /// Opens the file of bytes so far, to append to it or to start over.
    pub(crate) fn open_incomplete(&self) -> Result<DiskFile, FileError> {
        let mut file = self.open(&self.incomplete)?;
        // After a power cut there may be gaps in it, which only a hash finds.
        if !self.has_sha256() {
            file.resize(0)?;
        }
        Ok(file)
    }

    /// Whether the hub's hash is SHA-256. Small files are named by git's own hash, which is of other bytes.
    fn has_sha256(&self) -> bool {
        self.blob.file_name().is_some_and(|it| it.len() == 64)
    }

    /// Compares the bytes with the hub's hash and gives them their name.
    pub(crate) fn complete(&self, file: &HubFile, announced: &Announced) -> Result<(), FetchError> {
        let expected = &announced.etag;
        if self.has_sha256() {
            let got = sha256_file(&self.incomplete)?;
            if got != *expected {
                self.system.remove_file(&self.incomplete)?;
                return Err(FetchError::Checksum { file: file.to_string(), expected: expected.clone(), got });
            }
        }
        Ok(self.system.rename(&self.incomplete, &self.blob)?)
    }

    /// Makes the bytes known under the file's name and the branch.
    pub(crate) fn link(&self, announced: &Announced) -> Result<PathBuf, FileError> {
        self.make_parent(&self.snapshot)?;
        if !self.snapshot.exists() {
            // A link to bytes that are gone.
            if self.snapshot.is_symlink() {
                self.system.remove_file(&self.snapshot)?;
            }
            self.link_or_move()?;
        }
        // A commit is found without.
        if self.reference.file_name().is_some_and(|name| name != announced.commit.as_str()) {
            self.make_parent(&self.reference)?;
            let write = |file: &mut dyn std::io::Write| file.write_all(announced.commit.as_bytes());
            self.system.atomic_write(&self.reference, write)?;
        }
        Ok(self.snapshot.clone())
    }

    #[cfg(unix)]
    fn link_or_move(&self) -> Result<(), FileError> {
        // Relative, so that the cache can be moved: out of `snapshots/commit` and the file's own folders.
        let depth = self.snapshot.components().count() - self.blob.components().count() + 1;
        let name = self.blob.file_name().unwrap_or_default();
        let target = std::iter::repeat_n("..", depth).collect::<PathBuf>().join("blobs").join(name);
        self.system.link(&self.snapshot, &target)
    }

    #[cfg(not(unix))]
    fn link_or_move(&self) -> Result<(), FileError> {
        // Links need rights that users seldom have there; huggingface_hub moves the file too.
        self.system.rename(&self.blob, &self.snapshot)
    }
}
