//! Files of arrays: which there are.

use std::collections::BTreeMap;
use std::path::Path;

use crate::npz::array::NpyArray;
use crate::npz::directory::{Entry, Method, clip, read_directory};
use crate::npz::error::NpzError;
use crate::npz::source::Source;

/// What the array of an `.npy` file is called here, which is numpy's name for an array without one.
const NAMELESS: &str = "arr_0";

/// Names that a message lists at most.
const LISTED: usize = 12;

/// An opened `.npz` or `.npy` file, told apart by content.
///
/// Opening checks the table of contents: sizes lie inside the file, nothing overlaps, no size is one that its
/// bytes cannot inflate to. Arrays are read when they are asked for.
#[derive(Debug)]
pub struct NpzFile {
    source: Source,
    arrays: BTreeMap<String, Entry>,
}

impl NpzFile {
    /// Opens a file; of an `.npy` file the one array is called `arr_0`.
    ///
    /// # Errors
    ///
    /// [`NpzError::Io`] and [`NpzError::NotAFile`] for what cannot be read, [`NpzError::UnknownFormat`] for
    /// other files, [`NpzError::Zip`] for a zip file that is cut short, damaged or of another kind, and
    /// [`NpzError::Limit`] for a directory that is too large.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NpzError> {
        let source = Source::open(path.as_ref())?;
        let start = source.read(0, source.len().min(6))?;
        let arrays = if start == b"\x93NUMPY" {
            let size = source.len();
            let name = NAMELESS.to_owned();
            BTreeMap::from([(
                name.clone(),
                Entry { name, method: Method::Stored, crc: None, packed: size, size, start: 0 },
            )])
        } else if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
            let named = |entry: Entry| Some((entry.name.strip_suffix(".npy")?.to_owned(), entry));
            read_directory(&source)?.into_iter().filter_map(named).collect()
        } else {
            return Err(NpzError::UnknownFormat { path: source.path().to_owned() });
        };
        Ok(Self { source, arrays })
    }

    /// Names of the arrays in alphabetical order, without `.npy`; other files in the archive are not listed.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arrays.keys().map(String::as_str)
    }

    /// Whether there is an array of this name, of whatever type.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.arrays.contains_key(name)
    }

    /// The array of this name; reads its header.
    ///
    /// # Errors
    ///
    /// [`NpzError::NoSuchArray`]; [`NpzError::UnsupportedDtype`] for strings, objects, records and numbers that
    /// are not read; [`NpzError::Npy`] and [`NpzError::Limit`] for a header that is malformed, too long, or
    /// states a shape that is not that of the bytes.
    pub fn array(&self, name: &str) -> Result<NpyArray<'_>, NpzError> {
        let Some((name, entry)) = self.arrays.get_key_value(name) else {
            let mut present: Vec<String> = self.names().take(LISTED).map(clip).collect();
            if self.arrays.len() > LISTED {
                present.push(format!("{} more", self.arrays.len() - LISTED));
            }
            let present = if present.is_empty() { "none".to_owned() } else { present.join(", ") };
            return Err(NpzError::NoSuchArray {
                path: self.source.path().to_owned(),
                array: clip(name),
                present,
            });
        };
        NpyArray::new(&self.source, name, entry)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.source.path()
    }
}
