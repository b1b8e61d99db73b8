//! One array of a file.

use std::ops::Range;

use crate::npz::content::Content;
use crate::npz::directory::{Entry, clip};
use crate::npz::error::NpzError;
use crate::npz::header::{Dtype, HeaderProblem, NpyHeader};
use crate::npz::limits::{MAX_HEADER_BYTES, MAX_VALUES};
use crate::npz::rows::Rows;
use crate::npz::source::Source;
use crate::npz::value::{in_c_order, to_f64, to_i64};

/// The longest beginning that says how long a header is.
const PREFACE: u64 = 12;

/// Bytes that are turned into values at once; a multiple of every number's size.
const CHUNK: usize = 1 << 16;

/// An array whose header was read, and agrees with the number of its bytes.
#[derive(Debug)]
pub struct NpyArray<'a> {
    pub(crate) source: &'a Source,
    pub(crate) name: &'a str,
    pub(crate) entry: &'a Entry,
    header: NpyHeader,
    /// Size of what stands before the numbers.
    pub(crate) header_bytes: u64,
}

impl<'a> NpyArray<'a> {
    pub(crate) fn new(source: &'a Source, name: &'a str, entry: &'a Entry) -> Result<Self, NpzError> {
        let path = || source.path().to_owned();
        let broken = |problem: String| NpzError::Npy { path: path(), array: clip(name), problem };
        let problem = |it| match it {
            HeaderProblem::Broken(problem) => broken(problem),
            HeaderProblem::Dtype(descr) => {
                NpzError::UnsupportedDtype { path: path(), array: clip(name), descr }
            }
        };
        let mut start = vec![0; entry.size.min(PREFACE) as usize];
        Content::new(source, entry).fill(&mut start).map_err(broken)?;
        let (before, length) = NpyHeader::lengths(&start).map_err(problem)?;
        if length > MAX_HEADER_BYTES {
            let what = format!("the header of array {}", clip(name));
            return Err(NpzError::Limit { path: path(), what, limit: MAX_HEADER_BYTES, got: length });
        }
        let header_bytes = before + length;
        let mut bytes = vec![0; header_bytes as usize];
        Content::new(source, entry).fill(&mut bytes).map_err(broken)?;
        let header = NpyHeader::parse(&bytes[before as usize..]).map_err(problem)?;
        let got = entry.size - header_bytes;
        if header.data_bytes() != Some(got) {
            let NpyHeader { dtype, shape, .. } = &header;
            return Err(broken(format!(
                "it has {got} bytes of numbers, which are not {shape:?} of {}",
                dtype.descr()
            )));
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

    /// Checks the shape, where `None` stands for any size.
    ///
    /// # Errors
    ///
    /// [`NpzError::Mismatch`].
    pub fn expect_shape(&self, expected: &[Option<usize>]) -> Result<(), NpzError> {
        let fits = |(size, expected): (&usize, &Option<usize>)| expected.is_none_or(|it| it == *size);
        if expected.len() == self.shape().len() && self.shape().iter().zip(expected).all(fits) {
            return Ok(());
        }
        let sizes: Vec<String> =
            expected.iter().map(|it| it.map_or_else(|| "any".to_owned(), |size| size.to_string())).collect();
        let tail = if sizes.len() == 1 { "," } else { "" };
        let tuple = format!("shape ({}{tail})", sizes.join(", "));
        Err(self.mismatch(tuple, format!("{:?}", self.shape())))
    }

    /// Checks the type.
    ///
    /// # Errors
    ///
    /// [`NpzError::Mismatch`].
    pub fn expect_dtype(&self, expected: Dtype) -> Result<(), NpzError> {
        if self.dtype() == expected {
            return Ok(());
        }
        Err(self.mismatch(format!("type {}", expected.descr()), self.dtype().descr().to_owned()))
    }

    /// Some rows, to be read one after the other; a row is what stands at one first index.
    ///
    /// Of a stored array nothing else is read; of a deflated one all that stands before is unpacked too.
    ///
    /// # Errors
    ///
    /// [`NpzError::Mismatch`] for rows that there are not; [`NpzError::FortranOrder`], unless there is one
    /// dimension; [`NpzError::Npy`] as for [`Rows::read`].
    pub fn rows(&self, range: Range<usize>) -> Result<Rows<'a>, NpzError> {
        self.no_fortran()?;
        let count = self.header.num_rows();
        if range.start > range.end || range.end > count {
            return Err(self.mismatch(format!("rows within {range:?}"), format!("{count} rows")));
        }
        Rows::new(self, range)
    }

    /// All values as f64, in C order; whole numbers beyond `2^53` are rounded.
    ///
    /// # Errors
    ///
    /// [`NpzError::Limit`] for more than `2^27` values; [`NpzError::Npy`] as for [`Rows::read`].
    pub fn f64_values(&self) -> Result<Vec<f64>, NpzError> {
        self.values(to_f64)
    }

    /// All values of an array of whole numbers, in C order.
    ///
    /// # Errors
    ///
    /// [`NpzError::Mismatch`] for other numbers, and as [`f64_values`](Self::f64_values).
    pub fn i64_values(&self) -> Result<Vec<i64>, NpzError> {
        match self.dtype() {
            Dtype::U8 | Dtype::I32 | Dtype::I64 => self.values(to_i64),
            Dtype::F16 | Dtype::F32 | Dtype::F64 => {
                Err(self.mismatch("whole numbers".to_owned(), self.dtype().descr().to_owned()))
            }
        }
    }

    fn values<T: Copy>(&self, decode: fn(Dtype, &[u8], &mut Vec<T>)) -> Result<Vec<T>, NpzError> {
        // Checked against the size of the bytes, so it fits.
        let count = self.header.num_values().unwrap_or(u64::MAX);
        if count > MAX_VALUES {
            let (path, what) =
                (self.source.path().to_owned(), format!("the size of array {}", clip(self.name)));
            return Err(NpzError::Limit { path, what, limit: MAX_VALUES, got: count });
        }
        let broken = |problem| self.broken(problem);
        let mut content = Content::new(self.source, self.entry);
        let mut header = vec![0; self.header_bytes as usize];
        content.fill(&mut header).map_err(broken)?;
        // Grows as bytes arrive: a size that is a lie costs nothing.
        let mut values = Vec::new();
        let mut chunk = vec![0; CHUNK];
        while content.left() > 0 {
            let now = content.left().min(CHUNK as u64) as usize;
            content.fill(&mut chunk[..now]).map_err(broken)?;
            decode(self.dtype(), &chunk[..now], &mut values);
        }
        content.finish().map_err(broken)?;
        if self.header.fortran_order {
            values = in_c_order(&values, self.shape());
        }
        Ok(values)
    }

    fn no_fortran(&self) -> Result<(), NpzError> {
        if self.header.fortran_order && self.shape().len() > 1 {
            return Err(NpzError::FortranOrder {
                path: self.source.path().to_owned(),
                array: clip(self.name),
            });
        }
        Ok(())
    }

    pub(crate) fn broken(&self, problem: String) -> NpzError {
        NpzError::Npy { path: self.source.path().to_owned(), array: clip(self.name), problem }
    }

    fn mismatch(&self, expected: String, got: String) -> NpzError {
        NpzError::Mismatch { path: self.source.path().to_owned(), array: clip(self.name), expected, got }
    }
}
