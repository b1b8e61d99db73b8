//! Writing arrays that fit in memory.

use std::path::Path;

use crate::npz::durable::{Existing, write_file};
use crate::npz::error::NpzError;
use crate::npz::header::{Dtype, NpyHeader};
use crate::npz::zip_layout::{ArrayEntry, directory};

/// The values of an array to write, in C order.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum ArrayData<'a> {
    /// Bytes.
    U8(&'a [u8]),
    /// Whole numbers of 32 bits.
    I32(&'a [i32]),
    /// Whole numbers of 64 bits.
    I64(&'a [i64]),
    /// Numbers of 32 bits.
    F32(&'a [f32]),
    /// Numbers of 64 bits.
    F64(&'a [f64]),
}

impl ArrayData<'_> {
    fn dtype(self) -> Dtype {
        match self {
            Self::U8(_) => Dtype::U8,
            Self::I32(_) => Dtype::I32,
            Self::I64(_) => Dtype::I64,
            Self::F32(_) => Dtype::F32,
            Self::F64(_) => Dtype::F64,
        }
    }

    fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::U8(values) => values.to_vec(),
            Self::I32(values) => values.iter().flat_map(|it| it.to_le_bytes()).collect(),
            Self::I64(values) => values.iter().flat_map(|it| it.to_le_bytes()).collect(),
            Self::F32(values) => values.iter().flat_map(|it| it.to_le_bytes()).collect(),
            Self::F64(values) => values.iter().flat_map(|it| it.to_le_bytes()).collect(),
        }
    }
}

/// Writes named arrays with their shapes to an `.npz` file (zip64, stored), which is complete or absent.
///
/// Equal arrays give equal bytes; an earlier file is replaced in one step.
///
/// # Errors
///
/// [`NpzError::Invalid`] for a shape that is not that of the values, and for a name that is empty, used twice,
/// longer than 200 bytes, or has characters other than ASCII letters, digits, `_`, `-` and `.`;
/// [`NpzError::Io`] if the file cannot be written.
pub fn write_npz(path: impl AsRef<Path>, arrays: &[(&str, &[usize], ArrayData<'_>)]) -> Result<(), NpzError> {
    let mut entries: Vec<ArrayEntry> = Vec::new();
    let mut parts = Vec::new();
    let mut offset = 0;
    for &(name, shape, data) in arrays {
        let allowed = |it: u8| it.is_ascii_alphanumeric() || b"_-.".contains(&it);
        let fine = (1..=200).contains(&name.len()) && name.bytes().all(allowed);
        if !fine || entries.iter().any(|it| it.name.strip_suffix(".npy") == Some(name)) {
            let expected = "a name of letters, digits, _, - and ., each once".to_owned();
            return Err(NpzError::Invalid { what: "array name", expected, got: format!("{name:?}") });
        }
        let header = NpyHeader { dtype: data.dtype(), shape: shape.to_vec(), fortran_order: false };
        let bytes = data.to_bytes();
        let entry = ArrayEntry::new(name, &header, offset).filter(|it| it.data_bytes == bytes.len() as u64);
        let Some(mut entry) = entry else {
            let expected = format!("as many values as {shape:?} has");
            let got = (bytes.len() / header.dtype.bytes()).to_string();
            return Err(NpzError::Invalid { what: "array to write", expected, got });
        };
        entry.data_crc = crc32fast::hash(&bytes);
        offset = entry.end();
        parts.push((entry.front(), bytes));
        entries.push(entry);
    }
    write_file(path.as_ref(), Existing::Replace, |file| {
        for (front, bytes) in &parts {
            file.write_all(front)?;
            file.write_all(bytes)?;
        }
        file.write_all(&directory(&entries, offset))
    })
}
