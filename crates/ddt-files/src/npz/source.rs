//! A file to read parts of.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::npz::error::NpzError;
use crate::npz::positioned::{read_at, read_exact_at};

/// An opened file and its length.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, NpzError> {
        // Asked first: opening a pipe would wait for its writer.
        let metadata = std::fs::metadata(path).map_err(NpzError::io("read", path))?;
        if !metadata.is_file() {
            return Err(NpzError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(NpzError::io("read", path))?;
        let len = file.metadata().map_err(NpzError::io("read", path))?.len();
        Ok(Self { path: path.to_owned(), file, len })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Reads `len` bytes at `offset`, which the caller has compared with a limit.
    pub(crate) fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, NpzError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let problem =
                format!("{len} bytes at {offset} reach beyond its {} bytes; it is cut short", self.len);
            return Err(self.broken(problem));
        }
        let mut bytes = vec![0; len as usize];
        read_exact_at(&self.file, &mut bytes, offset).map_err(NpzError::io("read", &self.path))?;
        Ok(bytes)
    }

    /// Bytes from `start` to `end`, one after the other.
    pub(crate) fn section(&self, start: u64, end: u64) -> Section<'_> {
        Section { file: &self.file, position: start, end }
    }

    pub(crate) fn broken(&self, problem: impl Into<String>) -> NpzError {
        NpzError::Zip { path: self.path.clone(), problem: problem.into() }
    }
}

/// A part of a file.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    file: &'a File,
    position: u64,
    end: u64,
}

impl Section<'_> {
    /// Passes over up to `bytes` bytes.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.position = self.position.saturating_add(bytes).min(self.end);
    }
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = (self.end - self.position).min(buffer.len() as u64) as usize;
        let read = read_at(self.file, &mut buffer[..most], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}
