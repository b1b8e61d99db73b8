//! Strided views of a storage: bounds, and gathering into row-major order.
//!
//! ```text
//! element (i_0, .., i_n) is at offset + i_0 stride_0 + .. + i_n stride_n
//! ```

/// A view whose every element is known to lie inside its storage.
#[derive(Debug)]
pub(crate) struct View {
    // Dimensions of one element are left out, whatever their strides: they do not move.
    dims: Vec<(usize, usize)>,
    offset: usize,
    elements: usize,
    // Elements from the first to the last, both included; 0 if there are none.
    span: usize,
}

impl View {
    /// Checks a view against a storage of `available` elements; `shape` has been checked for overflow.
    pub(crate) fn new(
        shape: &[usize],
        strides: Vec<usize>,
        offset: usize,
        available: u64,
    ) -> Result<Self, String> {
        let elements: usize = shape.iter().product();
        if elements == 0 {
            return Ok(Self { dims: Vec::new(), offset: 0, elements, span: 0 });
        }
        let dims: Vec<(usize, usize)> =
            shape.iter().copied().zip(strides).filter(|&(dim, _)| dim > 1).collect();
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

    /// The first element, and the number of elements up to the last.
    pub(crate) fn span(&self) -> (usize, usize) {
        (self.offset, self.span)
    }

    /// Whether the span is the tensor, in row-major order.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.dims.iter().rev().all(|&(dim, stride)| {
            let fits = stride == expected;
            expected *= dim;
            fits
        })
    }

    /// Copies the elements out of the bytes of the span, in row-major order.
    pub(crate) fn gather(&self, span: &[u8], element: usize) -> Vec<u8> {
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
        let view = View::new(shape, strides.to_vec(), offset, storage.len() as u64)?;
        let (begin, len) = view.span();
        Ok(view.gather(&storage[begin..begin + len], 1))
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
        let contiguous = |shape: &[usize], strides: &[usize]| {
            View::new(shape, strides.to_vec(), 0, 100).unwrap().is_contiguous()
        };
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
