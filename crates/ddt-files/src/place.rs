//! Places of tensors in a file: strided views of storages, their bounds, and gathering into row-major order.
//!
//! ```text
//! element (i_0, .., i_n) is at offset + i_0 stride_0 + .. + i_n stride_n
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::source::Source;
use crate::zip::Entry;
use crate::{FileError, TensorInfo};

/// Table of contents of a file.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) tensors: BTreeMap<String, Place>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Place of a tensor: a view of a storage, every element of which is inside it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) info: TensorInfo,
    strides: Vec<usize>,
    offset: usize,
    /// Elements of the storage.
    available: u64,
    storage: Storage,
}

/// Where the numbers of a storage, or of a part of it, begin.
#[derive(Debug)]
pub(crate) enum Storage {
    /// In an entry of a zip archive, at this byte.
    Entry(Entry, u64),
    /// At this byte of the file.
    File(u64),
}

impl Place {
    /// Checks a view of a storage of `available` elements; the shape has been checked for overflow.
    pub(crate) fn new(
        info: TensorInfo,
        strides: Vec<usize>,
        offset: usize,
        available: u64,
        storage: Storage,
    ) -> Result<Self, String> {
        View::new(&info.shape, &strides, offset, available)?;
        Ok(Self { info, strides, offset, available, storage })
    }

    /// A tensor in row-major order, which begins at a byte of the file.
    pub(crate) fn row_major(info: TensorInfo, begin: u64) -> Self {
        let mut strides = vec![1; info.shape.len()];
        for axis in (1..strides.len()).rev() {
            strides[axis - 1] = strides[axis] * info.shape[axis].max(1);
        }
        let available = info.shape.iter().product::<usize>() as u64;
        Self { info, strides, offset: 0, available, storage: Storage::File(begin) }
    }

    /// Reads the tensor, or some of its rows, which are counted along its first axis.
    pub(crate) fn read(
        &self,
        source: &Source,
        name: &str,
        rows: Option<Range<usize>>,
        device: &Device,
    ) -> Result<Tensor, FileError> {
        let wrong = |problem: String| FileError::tensor(source.path(), name, problem);
        let (mut shape, mut offset, dtype) = (self.info.shape.clone(), self.offset, self.info.dtype);
        if let Some(rows) = rows {
            let of = shape.first().copied().unwrap_or(0);
            let Some(first) = shape.first_mut().filter(|_| rows.start <= rows.end && rows.end <= of) else {
                return Err(wrong(format!("expected rows below {of}, got {rows:?}")));
            };
            *first = rows.len();
            // Beyond the storage only if there are no rows.
            offset = offset.saturating_add(rows.start.saturating_mul(self.strides[0]));
        }
        let view = View::new(&shape, &self.strides, offset, self.available).map_err(wrong)?;
        let element = dtype.size_in_bytes();
        // Both products are at most the storage's size in bytes.
        let (begin, len) = ((view.offset * element) as u64, (view.span * element) as u64);
        let span = match &self.storage {
            Storage::Entry(entry, at) => entry.read(source, at + begin, len)?,
            Storage::File(at) => source.read("a tensor", at + begin, len)?,
        };
        let bytes = if view.is_contiguous() { span } else { view.gather(&span, element) };
        Tensor::from_raw_buffer(&bytes, dtype, &shape, device).map_err(|error| wrong(error.to_string()))
    }
}

/// A view whose every element is known to be inside its storage.
struct View {
    // Dimensions of one element are left out, whatever their strides: they do not move.
    dims: Vec<(usize, usize)>,
    offset: usize,
    elements: usize,
    // Elements from the first to the last, both included; 0 if there are none.
    span: usize,
}

impl View {
    fn new(shape: &[usize], strides: &[usize], offset: usize, available: u64) -> Result<Self, String> {
        let elements: usize = shape.iter().product();
        if elements == 0 {
            return Ok(Self { dims: Vec::new(), offset: 0, elements, span: 0 });
        }
        let dims: Vec<(usize, usize)> =
            shape.iter().copied().zip(strides.iter().copied()).filter(|&(dim, _)| dim > 1).collect();
        let end = dims
            .iter()
            .try_fold(1usize, |end, &(dim, stride)| (dim - 1).checked_mul(stride)?.checked_add(end))
            .and_then(|span| Some((span, span.checked_add(offset)?)));
        let Some((span, _)) = end.filter(|&(_, end)| end as u64 <= available) else {
            return Err(format!(
                "shape {shape:?} at offset {offset} leaves its storage of {available} elements"
            ));
        };
        // Repeating elements by strides of zero would let a small file ask for any amount of memory.
        if elements as u64 > available {
            return Err(format!("{elements} elements are made of a storage of {available}"));
        }
        Ok(Self { dims, offset, elements, span })
    }

    /// Whether the span is the tensor, in row-major order.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.dims.iter().rev().all(|&(dim, stride)| {
            let fits = stride == expected;
            expected *= dim;
            fits
        })
    }

    /// Copies the elements out of the bytes of the span, in row-major order.
    fn gather(&self, span: &[u8], element: usize) -> Vec<u8> {
        let mut gathered = Vec::with_capacity(self.elements * element);
        let mut index = vec![0; self.dims.len()];
        let mut at = 0;
        for _ in 0..self.elements {
            gathered.extend_from_slice(&span[at * element..(at + 1) * element]);
            // Counts up like an odometer, the last dimension fastest.
            for (i, &(dim, stride)) in index.iter_mut().zip(&self.dims).rev() {
                *i += 1;
                at += stride;
                if *i < dim {
                    break;
                }
                at -= dim * stride;
                *i = 0;
            }
        }
        gathered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(shape: &[usize], strides: &[usize], offset: usize, storage: &[u8]) -> Result<Vec<u8>, String> {
        let view = View::new(shape, strides, offset, storage.len() as u64)?;
        Ok(view.gather(&storage[view.offset..view.offset + view.span], 1))
    }

    #[test]
    fn gathers_in_row_major_order() {
        let storage = [0, 1, 2, 3, 4, 5, 6, 7];
        assert_eq!(gather(&[2, 3], &[3, 1], 1, &storage), Ok(vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(gather(&[3, 2], &[1, 3], 1, &storage), Ok(vec![1, 4, 2, 5, 3, 6]));
        assert_eq!(gather(&[4], &[2], 0, &storage), Ok(vec![0, 2, 4, 6]));
        assert_eq!(gather(&[2, 2], &[0, 1], 6, &storage), Ok(vec![6, 7, 6, 7]));
        assert_eq!(gather(&[2, 1, 2], &[1, 99, 4], 0, &storage), Ok(vec![0, 4, 1, 5]));
        assert_eq!(gather(&[], &[], 7, &storage), Ok(vec![7]));
        assert_eq!(gather(&[0, 5], &[5, 1], 99, &storage), Ok(vec![]));
    }

    #[test]
    fn contiguity_ignores_single_dimensions() {
        let contiguous =
            |shape: &[usize], strides: &[usize]| View::new(shape, strides, 0, 100).unwrap().is_contiguous();
        assert!(contiguous(&[2, 3], &[3, 1]));
        assert!(contiguous(&[2, 1, 3], &[3, 77, 1]));
        assert!(contiguous(&[], &[]));
        assert!(contiguous(&[0, 3], &[9, 9]));
        assert!(!contiguous(&[3, 2], &[1, 3]));
        assert!(!contiguous(&[4], &[2]));
    }

    #[test]
    fn refuses_views_that_leave_the_storage() {
        let storage = [0; 8];
        assert!(gather(&[2, 3], &[3, 1], 2, &storage).is_ok());
        assert!(gather(&[2, 3], &[3, 1], 3, &storage).is_err());
        assert!(gather(&[1], &[1], 8, &storage).is_err());
        assert!(gather(&[2], &[usize::MAX], 0, &storage).is_err());
        assert!(gather(&[2], &[1], usize::MAX, &storage).is_err());
        assert!(gather(&[9], &[0], 0, &storage).is_err());
    }
}
