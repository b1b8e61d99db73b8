//! Writing arrays that fit in memory.

use std::io::{Cursor, Seek, Write};
use std::path::Path;

use zip::result::ZipResult;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, System, ZipWriter};

use crate::npz::header::{Dtype, NpyHeader};
use crate::{FileError, FileSystem};

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

impl FileSystem {
    /// Writes named arrays with their shapes to an `.npz` file (stored), which is complete or absent.
    ///
    /// Equal arrays give equal bytes; an earlier file is replaced as a whole.
    ///
    /// # Errors
    ///
    /// [`FileError::Invalid`] for a shape that is not that of the values, and for a name that is empty, used twice,
    /// longer than 200 bytes, or has characters other than ASCII letters, digits, `_`, `-` and `.`;
    /// [`FileError::Io`] if the file cannot be written.
    pub fn write_npz(&self, path: &Path, arrays: &[NamedArray<'_>]) -> Result<(), FileError> {
        let failed = |error: zip::result::ZipError| FileError::io("write", path)(error.into());
        // In memory, where writing does not fail: a `ZipWriter` reports errors to the terminal when it is dropped.
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let mut names = Vec::new();
        for &(name, shape, data) in arrays {
            let allowed = |it: u8| it.is_ascii_alphanumeric() || b"_-.".contains(&it);
            let fine = (1..=200).contains(&name.len()) && name.bytes().all(allowed);
            if !fine || names.contains(&name) {
                let expected = "a name of letters, digits, _, - and ., each once";
                return Err(FileError::invalid("array name", expected, format!("{name:?}")));
            }
            names.push(name);
            let header = NpyHeader { dtype: data.dtype(), shape: shape.to_vec(), fortran_order: false };
            let bytes = data.to_bytes();
            if header.data_bytes() != Some(bytes.len() as u64) {
                let (expected, got) =
                    (format!("as many values as {shape:?} has"), bytes.len() / header.dtype.bytes());
                return Err(FileError::invalid("array to write", expected, got));
            }
            start_array(&mut zip, name, &header).and_then(|()| Ok(zip.write_all(&bytes)?)).map_err(failed)?;
        }
        let bytes = zip.finish().map_err(failed)?.into_inner();
        self.atomic_write(path, |file| file.write_all(&bytes))
    }
}

/// An array to write: its name, shape and values.
pub type NamedArray<'a> = (&'a str, &'a [usize], ArrayData<'a>);

/// [`FileSystem::write_npz`] to the real disk.
///
/// # Errors
///
/// As that.
pub fn write_npz(path: impl AsRef<Path>, arrays: &[NamedArray<'_>]) -> Result<(), FileError> {
    FileSystem::default().write_npz(path.as_ref(), arrays)
}

/// Begins an array of an archive; its numbers follow. Nothing depends on a clock or a machine.
pub(crate) fn start_array<W: Write + Seek>(
    zip: &mut ZipWriter<W>,
    name: &str,
    header: &NpyHeader,
) -> ZipResult<()> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::DEFAULT)
        .system(System::Unix)
        .unix_permissions(0o644)
        // Sizes of 64 bits, whether they are needed or not: the header's length is then the same.
        .large_file(true);
    zip.start_file(format!("{name}.npy"), options)?;
    Ok(zip.write_all(&header.encode())?)
}
