//! A pickle's bytes, and the values that running it builds.
//!
//! Values refer to each other by number, which makes cycles harmless and nesting free: nothing here is walked
//! recursively, cloned or dropped in depth. Text stays in the pickle, so memory is proportional to its size.

use std::ops::Range;
use std::path::Path;

use crate::FileError;
use crate::error::check_limit;
use crate::source::number;

/// The number of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) u32);

/// A piece of UTF-8 in the pickle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// A value of a pickle, as far as reading tensors needs it.
#[derive(Debug)]
pub(crate) enum Value {
    /// Something whose content does not matter here, and what to call it.
    Plain(&'static str),
    /// True or false.
    Bool(bool),
    /// An integer of at most eight bytes.
    Int(i64),
    /// A string.
    Text(Text),
    /// A tuple.
    Tuple(Box<[Id]>),
    /// A list.
    List(Vec<Id>),
    /// A dictionary, in order of insertion, keys unchecked.
    Dict(Vec<(Id, Id)>),
    /// A Python object by name. Nothing is looked up.
    Global {
        /// The module.
        module: Text,
        /// The name inside it.
        name: Text,
    },
    /// The result of a call. Nothing is called.
    Call {
        /// The function or class.
        callee: Id,
        /// Its arguments, a tuple.
        args: Id,
    },
    /// A reference to something outside the pickle, such as a storage.
    Persistent(Id),
}

impl Value {
    /// Name of the kind of value in a message.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Plain(kind) => kind,
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Text(_) => "a string",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Global { .. } => "a Python object",
            Self::Call { .. } => "the result of a call",
            Self::Persistent(_) => "a storage",
        }
    }
}

/// A pickle that has been run.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) values: Vec<Value>,
    pub(crate) top: Id,
    /// Bytes from its first instruction to its last.
    pub(crate) len: usize,
}

impl Pickle<'_> {
    pub(crate) fn value(&self, id: Id) -> &Value {
        // The machine gives out no other numbers; the fallback spares a panic.
        self.values.get(id.0 as usize).unwrap_or(&Value::Plain("nothing"))
    }

    /// The numbers of all values.
    pub(crate) fn ids(&self) -> impl Iterator<Item = Id> {
        (0..self.values.len() as u32).map(Id)
    }

    pub(crate) fn text(&self, text: Text) -> &str {
        let bytes = self.bytes.get(text.start as usize..text.end as usize).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The string that a value is, if it is one.
    pub(crate) fn str(&self, id: Id) -> Option<&str> {
        match self.value(id) {
            Value::Text(text) => Some(self.text(*text)),
            _ => None,
        }
    }

    /// The module and name of a Python object.
    pub(crate) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.value(id) {
            Value::Global { module, name } => Some((self.text(*module), self.text(*name))),
            _ => None,
        }
    }

    /// Value of a dictionary under a string; the last of equal keys counts, as in Python.
    pub(crate) fn get(&self, dict: Id, key: &str) -> Option<Id> {
        let Value::Dict(items) = self.value(dict) else { return None };
        items.iter().rev().find(|it| self.str(it.0) == Some(key)).map(|it| it.1)
    }
}

/// A position in a pickle.
pub(crate) struct Cursor<'a> {
    pub(crate) path: &'a Path,
    pub(crate) bytes: &'a [u8],
    pub(crate) at: usize,
    // Where the current instruction began.
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0, offset: 0 }
    }

    /// Steps over the byte that begins an instruction, and returns it.
    pub(crate) fn instruction(&mut self) -> Result<u8, FileError> {
        self.offset = self.at;
        Ok(self.number(1)? as u8)
    }

    pub(crate) fn fault(&self, problem: impl AsRef<str>) -> FileError {
        FileError::unusable(
            self.path,
            format!("invalid pickle at byte {}: {}", self.offset, problem.as_ref()),
        )
    }

    pub(crate) fn limit(&self, what: &str, limit: usize, got: usize) -> Result<(), FileError> {
        check_limit(self.path, what, limit as u64, got as u64)
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], FileError> {
        let range = self.range(len as u64)?;
        Ok(&self.bytes[range])
    }

    /// Steps over `len` bytes and returns where they are.
    pub(crate) fn range(&mut self, len: u64) -> Result<Range<usize>, FileError> {
        let rest = (self.bytes.len() - self.at) as u64;
        if len > rest {
            return Err(self.fault(format!("{len} bytes are needed, {rest} are left")));
        }
        let start = self.at;
        self.at += len as usize;
        Ok(start..self.at)
    }

    pub(crate) fn number(&mut self, len: usize) -> Result<u64, FileError> {
        Ok(number(self.take(len)?, 0, len))
    }

    /// Steps over `len` bytes of text; `None` if they are not UTF-8, as Python's lone surrogates.
    pub(crate) fn text(&mut self, len: u64) -> Result<Option<Text>, FileError> {
        let range = self.range(len)?;
        // Positions fit: the pickle's size is limited.
        let text = Text { start: range.start as u32, end: range.end as u32 };
        Ok(std::str::from_utf8(&self.bytes[range]).is_ok().then_some(text))
    }

    pub(crate) fn line(&mut self) -> Result<Text, FileError> {
        let rest = &self.bytes[self.at..];
        let Some(len) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(self.fault("a line does not end"));
        };
        let text = self.text(len as u64)?;
        self.at += 1;
        text.ok_or_else(|| self.fault("a name is not UTF-8"))
    }
}
