//! Files of arrays, one array of a file, and its rows.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use half::f16;

use crate::FileError;
use crate::error::{check_limit, clip, list};
use crate::limits::{MAX_NPY_HEADER_BYTES, MAX_VALUES};
use crate::npz::header::{Dtype, NpyHeader};
use crate::source::Source;
use crate::zip::{self, Content, Entry};

/// Name of the array of an `.npy` file, which is numpy's for an array without one.
const NAMELESS: &str = "arr_0";

/// The longest beginning that says how long a header is.
const PREFACE: u64 = 12;

/// Bytes that are turned into values at once; a multiple of every number's size.
const CHUNK: usize = 1 << 16;

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
    ///
    /// [`FileError::Unusable`] for a file of another kind, cut short or damaged, or with too many entries;
    /// [`FileError::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let source = Source::open(path.as_ref())?;
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
    ///
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
            let (shape, descr) = (&header.shape, header.dtype.descr());
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
    pub fn dtype(&self) -> Dtype {
        self.header.dtype
    }

    /// Checks the shape, where `None` is any size.
    ///
    /// # Errors
    ///
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
    ///
    /// [`FileError::Unusable`].
    pub fn expect_dtype(&self, expected: Dtype) -> Result<(), FileError> {
        if self.dtype() == expected {
            return Ok(());
        }
        Err(self.broken(format!("expected type {}, got {}", expected.descr(), self.dtype().descr())))
    }

    /// Some rows, to be read one after the other; a row is what is at one first index.
    ///
    /// Nothing else of a stored array is read; of a deflated one, all that is before the rows is inflated too.
    ///
    /// # Errors
    ///
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
    ///
    /// [`FileError::Unusable`] for more than `2^27` values, and as for [`Rows::read`].
    pub fn f64_values(&self) -> Result<Vec<f64>, FileError> {
        self.values(to_f64)
    }

    /// All values of an array of whole numbers, in C order.
    ///
    /// # Errors
    ///
    /// [`FileError::Unusable`] for other numbers, and as [`f64_values`](Self::f64_values).
    pub fn i64_values(&self) -> Result<Vec<i64>, FileError> {
        match self.dtype() {
            Dtype::U8 | Dtype::I32 | Dtype::I64 => self.values(to_i64),
            Dtype::F16 | Dtype::F32 | Dtype::F64 => {
                Err(self.broken(format!("expected whole numbers, got {}", self.dtype().descr())))
            }
        }
    }

    fn values<T: Copy>(&self, decode: fn(Dtype, &[u8], &mut Vec<T>)) -> Result<Vec<T>, FileError> {
        let what = format!("`{}`: the number of its values", clip(self.name));
        // Checked against the size of the bytes, so it fits.
        let count = self.header.num_values().unwrap_or(u64::MAX);
        check_limit(self.source.path(), &what, MAX_VALUES, count)?;
        let broken = |problem| self.broken(problem);
        let mut content = self.numbers(0)?;
        // Grows as bytes arrive: a size that is a lie costs nothing.
        let mut values = Vec::new();
        let mut chunk = vec![0; CHUNK];
        while content.left() > 0 {
            let now = content.left().min(CHUNK as u64) as usize;
            content.fill(&mut chunk[..now]).map_err(broken)?;
            decode(self.dtype(), &chunk[..now], &mut values);
        }
        content.finish().map_err(broken)?;
        Ok(if self.header.fortran_order { in_c_order(&values, self.shape()) } else { values })
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
    ///
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

/// Appends the numbers of whole `bytes`.
fn to_f64(dtype: Dtype, bytes: &[u8], values: &mut Vec<f64>) {
    match dtype {
        Dtype::U8 => values.extend(bytes.iter().map(|&it| f64::from(it))),
        Dtype::I32 => values.extend(numbers(bytes).map(|it| f64::from(i32::from_le_bytes(it)))),
        Dtype::I64 => values.extend(numbers(bytes).map(|it| i64::from_le_bytes(it) as f64)),
        Dtype::F16 => values.extend(numbers(bytes).map(|it| f16::from_le_bytes(it).to_f64())),
        Dtype::F32 => values.extend(numbers(bytes).map(|it| f64::from(f32::from_le_bytes(it)))),
        Dtype::F64 => values.extend(numbers(bytes).map(f64::from_le_bytes)),
    }
}

/// Appends the numbers of whole `bytes`; fractions are cut off.
fn to_i64(dtype: Dtype, bytes: &[u8], values: &mut Vec<i64>) {
    match dtype {
        Dtype::U8 => values.extend(bytes.iter().map(|&it| i64::from(it))),
        Dtype::I32 => values.extend(numbers(bytes).map(|it| i64::from(i32::from_le_bytes(it)))),
        Dtype::I64 => values.extend(numbers(bytes).map(i64::from_le_bytes)),
        Dtype::F16 | Dtype::F32 | Dtype::F64 => {
            let mut real = Vec::new();
            to_f64(dtype, bytes, &mut real);
            values.extend(real.into_iter().map(|it| it as i64));
        }
    }
}

/// Values of an array in Fortran order, with the last index fastest.
fn in_c_order<T: Copy>(values: &[T], shape: &[usize]) -> Vec<T> {
    let mut ordered = Vec::with_capacity(values.len());
    let mut index = vec![0; shape.len()];
    for _ in values {
        // Index (i, j, k) of shape (I, J, K) is at i + I (j + J k).
        let at = index.iter().zip(shape).rev().fold(0, |at, (i, size)| at * size + i);
        ordered.push(values[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    ordered
}

fn numbers<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks().0.iter().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_types_are_decoded() {
        let real = |dtype, bytes: &[u8]| {
            let (mut values, mut whole) = (Vec::new(), Vec::new());
            to_f64(dtype, bytes, &mut values);
            to_i64(dtype, bytes, &mut whole);
            assert_eq!(values.iter().map(|&it| it as i64).collect::<Vec<_>>(), whole);
            values
        };
        assert_eq!(real(Dtype::U8, &[0, 255]), [0.0, 255.0]);
        assert_eq!(real(Dtype::I32, &(-5i32).to_le_bytes()), [-5.0]);
        assert_eq!(real(Dtype::I64, &(1i64 << 40).to_le_bytes()), [2f64.powi(40)]);
        assert_eq!(real(Dtype::F16, &0x4500u16.to_le_bytes()), [5.0]);
        assert_eq!(real(Dtype::F16, &0x0001u16.to_le_bytes()), [2f64.powi(-24)]);
        assert_eq!(real(Dtype::F32, &1.5f32.to_le_bytes()), [1.5]);
        assert_eq!(real(Dtype::F64, &(-0.25f64).to_le_bytes()), [-0.25]);
    }

    #[test]
    fn fortran_order_is_undone() {
        // [[0, 1, 2], [3, 4, 5]], column by column.
        assert_eq!(in_c_order(&[0, 3, 1, 4, 2, 5], &[2, 3]), [0, 1, 2, 3, 4, 5]);
        // Element (i, j, k) = 100 i + 10 j + k of (2, 1, 3).
        assert_eq!(in_c_order(&[0, 100, 1, 101, 2, 102], &[2, 1, 3]), [0, 1, 2, 100, 101, 102]);
        assert!(in_c_order::<u8>(&[], &[0, 3]).is_empty());
        assert_eq!(in_c_order(&[7], &[]), [7]);
    }
}
