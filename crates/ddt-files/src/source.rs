//! The bytes of a file or buffer, read by position.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::FileError;
use crate::error::check_limit;

/// Bytes that can be read at any position, and the name they have in messages. Threads may share it.
pub(crate) struct Source {
    path: PathBuf,
    len: u64,
    bytes: Bytes,
}

enum Bytes {
    File(File),
    Memory(Cow<'static, [u8]>),
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        // Checked before opening: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(FileError::io("read", path))?.is_file() {
            return Err(FileError::unusable(path, "expected a regular file"));
        }
        let file = File::open(path).map_err(FileError::io("read", path))?;
        let len = file.metadata().map_err(FileError::io("read", path))?.len();
        Ok(Self { path: path.to_path_buf(), len, bytes: Bytes::File(file) })
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
    pub(crate) fn read(&self, what: &str, offset: u64, len: u64) -> Result<Vec<u8>, FileError> {
        let end = offset.saturating_add(len);
        if end > self.len {
            let problem = format!("it is cut short: {what} needs {end} bytes, the file has {}", self.len);
            return Err(FileError::unusable(&self.path, problem));
        }
        let failed = |source| FileError::io("read", &self.path)(source);
        let out_of_memory = || failed(io::ErrorKind::OutOfMemory.into());
        let size = usize::try_from(len).map_err(|_| out_of_memory())?;
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(size).map_err(|_| out_of_memory())?;
        buffer.resize(size, 0);
        self.reader_at(offset).read_exact(&mut buffer).map_err(failed)?;
        Ok(buffer)
    }

    /// A reader from `position` on.
    pub(crate) fn reader_at(&self, position: u64) -> Reader<'_> {
        Reader { source: self, position }
    }

    /// Reads some bytes at `offset`; 0 at the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.bytes {
            #[cfg(unix)]
            Bytes::File(file) => std::os::unix::fs::FileExt::read_at(file, buffer, offset),
            #[cfg(windows)]
            Bytes::File(file) => std::os::windows::fs::FileExt::seek_read(file, buffer, offset),
            Bytes::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let read = buffer.len().min(bytes.len() - start);
                buffer[..read].copy_from_slice(&bytes[start..start + read]);
                Ok(read)
            }
        }
    }
}

/// A position in a source. Readers of one source do not affect each other.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    source: &'a Source,
    position: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read_at(self.position, buffer)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.source.len().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

/// Reads a whole file of at most `max_bytes`.
///
/// # Errors
/// [`FileError::Unusable`] for a larger file and for what is no regular file, [`FileError::Io`].
pub fn read_file(path: &Path, max_bytes: u64) -> Result<Vec<u8>, FileError> {
    let source = Source::open(path)?;
    check_limit(path, "the size of the file", max_bytes, source.len())?;
    source.read("the file", 0, source.len())
}

/// A little-endian number of `len` bytes at `at`, which the caller knows to be inside.
pub(crate) fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
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
                let error = source.read("part", offset, len).unwrap_err().to_string();
                assert!(error.contains("cut short") && error.contains("has 10"), "{error}");
            }
        }
    }

    #[test]
    fn whole_files_are_read_up_to_a_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"0123456789").unwrap();
        assert_eq!(read_file(file.path(), 10).unwrap(), b"0123456789");
        let error = read_file(file.path(), 9).unwrap_err().to_string();
        assert!(error.ends_with("the size of the file is 10, the limit is 9"), "{error}");
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = Source::open(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("expected a regular file"), "{error}");
        let missing = Source::open(&folder.path().join("missing")).unwrap_err();
        assert!(missing.is_missing_file());
    }
}
