//! JSON files that name their format and version, read within bounds and replaced as a whole.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::PlanError;

/// A kind of file.
pub(crate) struct DocumentKind {
    pub(crate) format: &'static str,
    pub(crate) version: u32,
    pub(crate) max_bytes: u64,
}

/// What every file says first, whatever its kind.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<T> {
    // Read before as `Head`.
    #[serde(rename = "format")]
    _format: serde::de::IgnoredAny,
    #[serde(rename = "version")]
    _version: serde::de::IgnoredAny,
    content: T,
}

#[derive(Serialize)]
struct DocumentRef<'a, T> {
    format: &'static str,
    version: u32,
    content: &'a T,
}

impl DocumentKind {
    /// Reads a file's content.
    ///
    /// # Errors
    ///
    /// A typed error naming the file, for any bytes whatever.
    pub(crate) fn load<T: DeserializeOwned>(&self, path: &Path) -> Result<T, PlanError> {
        let bytes = self.read(path)?;
        let malformed = |source| PlanError::Malformed { path: path.to_owned(), source };
        // Another version may have other keys: say that it is one, not that its keys are unknown.
        let head: Head = serde_json::from_slice(&bytes).map_err(malformed)?;
        if head.format != self.format {
            return Err(PlanError::Format { path: path.to_owned(), expected: self.format, got: head.format });
        }
        if head.version != self.version {
            let (expected, got) = (self.version, head.version);
            return Err(PlanError::Version { path: path.to_owned(), expected, got });
        }
        let document: Document<T> = serde_json::from_slice(&bytes).map_err(malformed)?;
        Ok(document.content)
    }

    /// Replaces a file: it has either its old contents or the new ones, whatever happens meanwhile.
    pub(crate) fn save<T: Serialize>(&self, path: &Path, content: &T) -> Result<(), PlanError> {
        let document = DocumentRef { format: self.format, version: self.version, content };
        let mut bytes = serde_json::to_vec_pretty(&document)
            .map_err(|source| PlanError::Malformed { path: path.to_owned(), source })?;
        bytes.push(b'\n');
        if bytes.len() as u64 > self.max_bytes {
            return Err(PlanError::TooLarge { path: path.to_owned(), max_bytes: self.max_bytes });
        }
        replace(path, &bytes).map_err(|source| PlanError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        })
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, PlanError> {
        let failed = |source| PlanError::Io { action: "read", path: path.to_owned(), source };
        // Opening a pipe would wait for a writer.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(PlanError::NotAFile { path: path.to_owned() });
        }
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(self.max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > self.max_bytes {
            return Err(PlanError::TooLarge { path: path.to_owned(), max_bytes: self.max_bytes });
        }
        Ok(bytes)
    }
}

/// Writes beside, syncs, renames.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = name_beside(path)?;
    let written = write_synced(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&beside);
    }
    written?;
    sync_folder_of(path)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A hidden name in the same folder that no other save uses.
fn name_beside(path: &Path) -> io::Result<PathBuf> {
    static SAVES: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"));
    };
    let mut beside = OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}-{}.part", process::id(), SAVES.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(beside))
}

/// Makes the rename itself durable, where folders can be synced.
#[cfg(unix)]
fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder_of(_path: &Path) -> io::Result<()> {
    Ok(())
}
