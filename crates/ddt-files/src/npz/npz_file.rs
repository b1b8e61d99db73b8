//! Files of arrays: one array of a file and its rows, read; arrays that fit in memory, written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{Cursor, Seek, Write};
use std::ops::Range;
use std::path::Path;

use ::zip::result::ZipResult;
use ::zip::write::SimpleFileOptions;
use ::zip::{CompressionMethod, DateTime, System, ZipWriter};
use candle_core::{DType, Device, Tensor, WithDType};

use crate::error::{check_limit, clip, list};
use crate::limits::{MAX_NPY_HEADER_BYTES, MAX_VALUES};
use crate::npz::header::{NpyHeader, descr};
use crate::source::Source;
use crate::zip::{self, Content, Entry};
use crate::{FileError, FileSystem};

/// Name of the array of an `.npy` file, which is numpy's for an array without one.
const NAMELESS: &str = "arr_0";

/// The longest beginning that says how long a header is.
const PREFACE: u64 = 12;

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
    /// Opens a file; the one array of an `.npy` file is called `arr_0`.
    ///
    /// # Errors
    /// [`FileError::Unusable`] for a file of another kind, cut short or damaged, or with too many entries;
    /// [`FileError::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        Self::new(Source::open(path.as_ref())?)
    }

    /// Opens bytes in memory; `name` is the path in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, name: &str) -> Result<Self, FileError> {
        Self::new(Source::from_bytes(bytes.into(), name))
    }

    fn new(source: Source) -> Result<Self, FileError> {
        let start = source.read("the first bytes", 0, source.len().min(6))?;
        let arrays = if start == b"\x93NUMPY" {
            BTreeMap::from([(NAMELESS.to_owned(), Entry::whole(&source))])
        } else if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
            let named = |(name, it): (String, Entry)| Some((name.strip_suffix(".npy")?.to_owned(), it));
            zip::entries(&source)?.into_iter().filter_map(named).collect()
        } else {
            let problem = "neither npz nor npy; if it was copied or downloaded, check that it is complete";
            return Err(FileError::unusable(source.path(), problem));
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
    /// [`FileError::Unusable`] if there is none, for types that are not read (strings, objects, records), and for
    /// a header that is malformed, too long, or states a shape that is not that of the bytes.
    pub fn array(&self, name: &str) -> Result<NpyArray<'_>, FileError> {
        let Some((name, entry)) = self.arrays.get_key_value(name) else {
            let names: Vec<&str> = self.names().collect();
            let present = if names.is_empty() { "none".to_owned() } else { list(&names) };
            let problem = format!("no array `{}`; it has {present}", clip(name));
            return Err(FileError::unusable(self.path(), problem));
        };
        NpyArray::new(&self.source, name, entry)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.source.path()
    }
}

/// An array whose header was read, and agrees with the number of its bytes.
#[derive(Debug, Clone)]
pub struct NpyArray<'a> {
    source: &'a Source,
    name: &'a str,
    entry: &'a Entry,
    header: NpyHeader,
    /// Size of what is before the numbers.
    header_bytes: u64,
}

impl<'a> NpyArray<'a> {
    fn new(source: &'a Source, name: &'a str, entry: &'a Entry) -> Result<Self, FileError> {
        let broken = |problem: String| FileError::tensor(source.path(), name, problem);
        let begin = |bytes: u64| {
            let mut begin = vec![0; bytes as usize];
            Content::new(source, entry).fill(&mut begin).map_err(broken)?;
            Ok::<_, FileError>(begin)
        };
        let (before, length) = NpyHeader::lengths(&begin(entry.size.min(PREFACE))?).map_err(broken)?;
        let what = format!("`{}`: the length of its header", clip(name));
        check_limit(source.path(), &what, MAX_NPY_HEADER_BYTES, length)?;
        let header_bytes = before + length;
        let header = NpyHeader::parse(&begin(header_bytes)?[before as usize..]).map_err(broken)?;
        let got = entry.size - header_bytes;
        if header.data_bytes() != Some(got) {
            let (shape, descr) = (&header.shape, descr(header.dtype));
            return Err(broken(format!("it has {got} bytes of numbers, which are not {shape:?} of {descr}")));
        }
        Ok(Self { source, name, entry, header, header_bytes })
    }

    /// Type and shape.
    #[must_use]
    pub fn header(&self) -> &NpyHeader {
        &self.header
    }

    /// Sizes, the slowest first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.header.shape
    }

    /// Type of the numbers.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.header.dtype
    }

    /// Checks the shape, where `None` is any size.
    ///
    /// # Errors
    /// [`FileError::Unusable`].
    pub fn expect_shape(&self, expected: &[Option<usize>]) -> Result<(), FileError> {
        let fits = |(size, expected): (&usize, &Option<usize>)| expected.is_none_or(|it| it == *size);
        if expected.len() == self.shape().len() && self.shape().iter().zip(expected).all(fits) {
            return Ok(());
        }
        let sizes: Vec<String> =
            expected.iter().map(|it| it.map_or_else(|| "any".to_owned(), |size| size.to_string())).collect();
        let tail = if sizes.len() == 1 { "," } else { "" };
        Err(self.broken(format!("expected shape ({}{tail}), got {:?}", sizes.join(", "), self.shape())))
    }

    /// Checks the type.
    ///
    /// # Errors
    /// [`FileError::Unusable`].
    pub fn expect_dtype(&self, expected: DType) -> Result<(), FileError> {
        if self.dtype() == expected {
            return Ok(());
        }
        Err(self.broken(format!("expected type {}, got {}", descr(expected), descr(self.dtype()))))
    }

    /// Some rows, to be read one after the other; a row is what is at one first index.
    ///
    /// Nothing else of a stored array is read; of a deflated one, all that is before the rows is inflated too.
    ///
    /// # Errors
    /// [`FileError::Unusable`] for rows that do not exist, an array of several dimensions in Fortran order, and as
    /// for [`Rows::read`].
    pub fn rows(&self, range: Range<usize>) -> Result<Rows<'a>, FileError> {
        if self.header.fortran_order && self.shape().len() > 1 {
            return Err(self.broken("it is in Fortran order; save it anew with numpy.ascontiguousarray"));
        }
        let count = self.header.num_rows();
        if range.start > range.end || range.end > count {
            return Err(self.broken(format!("expected rows within {range:?}, got {count} rows")));
        }
        let row_bytes =
            self.header.row_bytes().ok_or_else(|| self.broken("its rows do not fit in memory"))?;
        // Inside the array, whose size is known to fit.
        let content = self.numbers(range.start as u64 * row_bytes as u64)?;
        Ok(Rows { content, row_bytes, left: range.len(), array: self.clone() })
    }

    /// All values as f64, in C order; whole numbers beyond `2^53` are rounded.
    ///
    /// # Errors
    /// [`FileError::Unusable`] for more than `2^27` values, and as for [`Rows::read`].
    pub fn f64_values(&self) -> Result<Vec<f64>, FileError> {
        self.values()
    }

    /// All values of an array of whole numbers, in C order.
    ///
    /// # Errors
    /// [`FileError::Unusable`] for other numbers, and as [`f64_values`](Self::f64_values).
    pub fn i64_values(&self) -> Result<Vec<i64>, FileError> {
        if self.dtype().is_float() {
            return Err(self.broken(format!("expected whole numbers, got {}", descr(self.dtype()))));
        }
        self.values()
    }

    fn values<T: WithDType>(&self) -> Result<Vec<T>, FileError> {
        let what = format!("`{}`: the number of its values", clip(self.name));
        // Checked against the size of the bytes, so it fits.
        let count = self.header.num_values().unwrap_or(u64::MAX);
        check_limit(self.source.path(), &what, MAX_VALUES, count)?;
        // From the first byte on, so that the checksum is compared.
        let mut content = Content::new(self.source, self.entry);
        let mut bytes = vec![0; self.entry.size as usize];
        let filled = content.fill(&mut bytes).and_then(|()| content.finish());
        filled.map_err(|problem| self.broken(problem))?;
        if count == 0 {
            return Ok(Vec::new());
        }
        // In Fortran order the sizes are backwards.
        let mut shape = self.shape().to_vec();
        let backwards = self.header.fortran_order && shape.len() > 1;
        let axes: Vec<usize> = (0..shape.len()).rev().collect();
        if backwards {
            shape.reverse();
        }
        let numbers = &bytes[self.header_bytes as usize..];
        let values = Tensor::from_raw_buffer(numbers, self.dtype(), &shape, &Device::Cpu);
        let ordered = values.and_then(|it| if backwards { it.permute(axes) } else { Ok(it) });
        let values = ordered.and_then(|it| it.flatten_all()?.to_dtype(T::DTYPE)?.to_vec1());
        values.map_err(|error| self.broken(error.to_string()))
    }

    /// The content from byte `from` of the numbers on.
    fn numbers(&self, from: u64) -> Result<Content<'a>, FileError> {
        let mut content = Content::new(self.source, self.entry);
        let mut header = vec![0; self.header_bytes as usize];
        let skipped = content.fill(&mut header).and_then(|()| content.skip(from));
        skipped.map_err(|problem| self.broken(problem))?;
        Ok(content)
    }

    fn broken(&self, problem: impl AsRef<str>) -> FileError {
        FileError::tensor(self.source.path(), self.name, problem)
    }
}

/// Reads rows of an array in turn, as the bytes of its numbers (little-endian).
///
/// ```
/// # use ddt_files::npz::{ArrayData, NpzFile, write_npz};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("images.npz");
/// # write_npz(&path, &[("arr_0", &[3, 2], ArrayData::U8(&[1, 2, 3, 4, 5, 6]))])?;
/// let file = NpzFile::open(&path)?;
/// let mut rows = file.array("arr_0")?.rows(1..3)?;
/// let mut buffer = vec![0; 10 * rows.row_bytes()];
/// assert_eq!(rows.read(&mut buffer)?, 2);
/// assert_eq!(buffer[..4], [3, 4, 5, 6]);
/// assert_eq!(rows.read(&mut buffer)?, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Rows<'a> {
    content: Content<'a>,
    row_bytes: usize,
    left: usize,
    array: NpyArray<'a>,
}

impl Rows<'_> {
    /// Size of one row in bytes.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Rows that are still to be read.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// Reads as many rows as fit in `buffer` and returns how many; 0 when all were read.
    ///
    /// The checksum is compared where all rows were asked for, and at the end of a deflated array.
    ///
    /// # Errors
    /// [`FileError::Invalid`] for a buffer too small for one row; [`FileError::Unusable`] for an array that is cut
    /// short, continues beyond its size or does not match its checksum.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, FileError> {
        let fits = buffer.len().checked_div(self.row_bytes).unwrap_or(usize::MAX);
        if fits == 0 && self.left > 0 {
            let expected = format!("at least {} bytes", self.row_bytes);
            return Err(FileError::invalid("memory for rows", expected, buffer.len()));
        }
        let now = fits.min(self.left);
        let filled = self.content.fill(&mut buffer[..now * self.row_bytes]);
        filled.and_then(|()| self.content.finish()).map_err(|problem| self.array.broken(problem))?;
        self.left -= now;
        Ok(now)
    }
}

impl fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("array", &self.array).field("left", &self.left).finish()
    }
}

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
    fn encode(self) -> (DType, Vec<u8>) {
        match self {
            Self::U8(values) => (DType::U8, values.to_vec()),
            Self::I32(values) => (DType::I32, values.iter().flat_map(|it| it.to_le_bytes()).collect()),
            Self::I64(values) => (DType::I64, values.iter().flat_map(|it| it.to_le_bytes()).collect()),
            Self::F32(values) => (DType::F32, values.iter().flat_map(|it| it.to_le_bytes()).collect()),
            Self::F64(values) => (DType::F64, values.iter().flat_map(|it| it.to_le_bytes()).collect()),
        }
    }
}

impl FileSystem {
    /// Writes named arrays with their shapes to an `.npz` file (stored), which is complete or absent.
    ///
    /// Equal arrays give equal bytes; an earlier file is replaced as a whole.
    ///
    /// # Errors
    /// [`FileError::Invalid`] for a shape that is not that of the values, and for a name that is empty, used twice,
    /// longer than 200 bytes, or has characters other than ASCII letters, digits, `_`, `-` and `.`;
    /// [`FileError::Io`] if the file cannot be written.
    pub fn write_npz(&self, path: &Path, arrays: &[NamedArray<'_>]) -> Result<(), FileError> {
        let failed = |error: ::zip::result::ZipError| FileError::io("write", path)(error.into());
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
            let (dtype, bytes) = data.encode();
            let header = NpyHeader { dtype, shape: shape.to_vec(), fortran_order: false };
            if header.data_bytes() != Some(bytes.len() as u64) {
                let (expected, got) =
                    (format!("as many values as {shape:?} has"), bytes.len() / dtype.size_in_bytes());
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
