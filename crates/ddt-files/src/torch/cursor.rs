//! Reading a pickle's bytes, and saying where in it something went wrong.

use std::ops::Range;
use std::path::Path;

use crate::CheckpointError;
use crate::torch::value::Text;

/// A position in a pickle.
pub(crate) struct Cursor<'a> {
    pub(crate) path: &'a Path,
    pub(crate) bytes: &'a [u8],
    at: usize,
    // Where the current instruction began.
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0, offset: 0 }
    }

    /// Steps over the byte that begins an instruction, and returns it.
    pub(crate) fn instruction(&mut self) -> Result<u8, CheckpointError> {
        self.offset = self.at;
        Ok(self.number(1)? as u8)
    }

    pub(crate) fn fault(&self, problem: impl Into<String>) -> CheckpointError {
        CheckpointError::Pickle {
            path: self.path.to_path_buf(),
            offset: self.offset,
            problem: problem.into(),
        }
    }

    pub(crate) fn limit(&self, what: &'static str, limit: usize, got: usize) -> Result<(), CheckpointError> {
        if got <= limit {
            return Ok(());
        }
        let (limit, got) = (limit as u64, got as u64);
        Err(CheckpointError::Limit { path: self.path.to_path_buf(), what, limit, got })
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&[u8], CheckpointError> {
        let range = self.range(len as u64)?;
        Ok(&self.bytes[range])
    }

    /// Steps over `len` bytes and returns where they are.
    pub(crate) fn range(&mut self, len: u64) -> Result<Range<usize>, CheckpointError> {
        let rest = (self.bytes.len() - self.at) as u64;
        if len > rest {
            return Err(self.fault(format!("{len} bytes are needed, {rest} are left")));
        }
        let start = self.at;
        self.at += len as usize;
        Ok(start..self.at)
    }

    pub(crate) fn number(&mut self, len: usize) -> Result<u64, CheckpointError> {
        Ok(self.take(len)?.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    /// Steps over `len` bytes of text; `None` if they are not UTF-8, as Python's lone surrogates.
    pub(crate) fn text(&mut self, len: u64) -> Result<Option<Text>, CheckpointError> {
        let range = self.range(len)?;
        // Positions fit: the pickle's size is limited.
        let text = Text { start: range.start as u32, end: range.end as u32 };
        Ok(std::str::from_utf8(&self.bytes[range]).is_ok().then_some(text))
    }

    pub(crate) fn line(&mut self) -> Result<Text, CheckpointError> {
        let rest = &self.bytes[self.at..];
        let Some(len) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(self.fault("a line does not end"));
        };
        let text = self.text(len as u64)?;
        self.at += 1;
        text.ok_or_else(|| self.fault("a name is not UTF-8"))
    }
}
