//! The bytes of a checkpoint: a file or a buffer, read by position.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::CheckpointError;

/// Bytes that can be read at any position, and the name they go by in messages.
pub(crate) struct Source {
    path: PathBuf,
    len: u64,
    bytes: Bytes,
}

enum Bytes {
    // A file has one cursor: seeking and reading must not be interrupted by another thread.
    File(Mutex<File>),
    Memory(Cow<'static, [u8]>),
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let failed = |source| CheckpointError::Read { path: path.to_path_buf(), source };
        // Checked before opening: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(CheckpointError::NotAFile { path: path.to_path_buf() });
        }
        let file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        Ok(Self { path: path.to_path_buf(), len, bytes: Bytes::File(Mutex::new(file)) })
    }

    pub(crate) fn from_bytes(bytes: Cow<'static, [u8]>, name: &str) -> Self {
        Self { path: PathBuf::from(name), len: bytes.len() as u64, bytes: Bytes::Memory(bytes) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Reads exactly `len` bytes at `offset`; allocates only if the file is long enough.
    pub(crate) fn read(&self, what: &'static str, offset: u64, len: u64) -> Result<Vec<u8>, CheckpointError> {
        let end = offset.saturating_add(len);
        if end > self.len {
            let path = self.path.clone();
            return Err(CheckpointError::Truncated { path, what, expected: end, got: self.len });
        }
        let out_of_memory = || CheckpointError::OutOfMemory { path: self.path.clone(), bytes: len };
        let size = usize::try_from(len).map_err(|_| out_of_memory())?;
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(size).map_err(|_| out_of_memory())?;
        buffer.resize(size, 0);
        self.fill(offset, &mut buffer)
            .map_err(|source| CheckpointError::Read { path: self.path.clone(), source })?;
        Ok(buffer)
    }

    fn fill(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.bytes {
            Bytes::File(file) => {
                // A panic elsewhere leaves at most a moved cursor, and every read sets it anew.
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(buffer)
            }
            Bytes::Memory(bytes) => {
                let start = usize::try_from(offset).map_err(io::Error::other)?;
                let rest = bytes.get(start..).ok_or(io::ErrorKind::UnexpectedEof)?;
                let part = rest.get(..buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(part);
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_by_position_and_refuses_what_is_not_there() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"0123456789").unwrap();
        let memory = Source::from_bytes(Cow::Borrowed(b"0123456789"), "memory");
        for source in [Source::open(file.path()).unwrap(), memory] {
            assert_eq!(source.read("part", 3, 4).unwrap(), b"3456");
            assert_eq!(source.read("part", 0, 2).unwrap(), b"01");
            assert_eq!(source.read("part", 10, 0).unwrap(), b"");
            for (offset, len) in [(8, 3), (11, 0), (u64::MAX, 1), (0, u64::MAX)] {
                let error = source.read("part", offset, len).unwrap_err();
                assert!(matches!(error, CheckpointError::Truncated { got: 10, .. }), "{error}");
            }
        }
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Source::open(folder.path()), Err(CheckpointError::NotAFile { .. })));
        let missing = folder.path().join("missing");
        assert!(matches!(Source::open(&missing), Err(CheckpointError::Read { .. })));
    }
}
