//! Sizes of tensors, computed without overflow.

use candle_core::DType;

use crate::limits::MAX_RANK;

/// Returns the number of elements, or what is wrong with `shape`.
///
/// A dimension of zero does not excuse the others: libraries multiply them in any order.
pub(crate) fn checked_elements(shape: &[usize]) -> Result<usize, String> {
    if shape.len() > MAX_RANK {
        return Err(format!("{} dimensions, the limit is {MAX_RANK}", shape.len()));
    }
    shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim.max(1)))
        // Eight bytes is the largest element: the size in bytes fits as well.
        .filter(|&product| product <= isize::MAX as usize / 8)
        .ok_or_else(|| format!("shape {shape:?} has too many elements"))?;
    Ok(shape.iter().product())
}

/// Returns the size in bytes, or what is wrong with `shape`.
pub(crate) fn checked_bytes(dtype: DType, shape: &[usize]) -> Result<u64, String> {
    Ok((checked_elements(shape)? * dtype.size_in_bytes()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn giant_shapes_are_refused_even_with_a_zero() {
        assert_eq!(checked_elements(&[]), Ok(1));
        assert_eq!(checked_elements(&[2, 3]), Ok(6));
        assert_eq!(checked_elements(&[4, 0]), Ok(0));
        assert_eq!(checked_bytes(DType::F16, &[2, 3]), Ok(12));
        assert!(checked_elements(&[usize::MAX, 2]).is_err());
        assert!(checked_elements(&[0, usize::MAX, usize::MAX]).is_err());
        assert!(checked_elements(&[usize::MAX]).is_err());
        assert!(checked_elements(&[1; MAX_RANK + 1]).is_err());
    }
}
