//! Bytes to numbers.

use crate::npz::header::Dtype;

/// Appends the numbers of whole `bytes`.
pub(crate) fn to_f64(dtype: Dtype, bytes: &[u8], values: &mut Vec<f64>) {
    match dtype {
        Dtype::U8 => values.extend(bytes.iter().map(|&it| f64::from(it))),
        Dtype::I32 => values.extend(numbers(bytes).map(|it| f64::from(i32::from_le_bytes(it)))),
        Dtype::I64 => values.extend(numbers(bytes).map(|it| i64::from_le_bytes(it) as f64)),
        Dtype::F16 => values.extend(numbers(bytes).map(|it| half_to_f64(u16::from_le_bytes(it)))),
        Dtype::F32 => values.extend(numbers(bytes).map(|it| f64::from(f32::from_le_bytes(it)))),
        Dtype::F64 => values.extend(numbers(bytes).map(f64::from_le_bytes)),
    }
}

/// Appends the numbers of whole `bytes`; what is no whole number is cut off.
pub(crate) fn to_i64(dtype: Dtype, bytes: &[u8], values: &mut Vec<i64>) {
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

/// Values of an array in Fortran's order, with the last index fastest.
pub(crate) fn in_c_order<T: Copy>(values: &[T], shape: &[usize]) -> Vec<T> {
    if values.is_empty() {
        return Vec::new();
    }
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1;
    for size in shape {
        strides.push(stride);
        stride *= size;
    }
    let mut index = vec![0; shape.len()];
    let mut from = 0;
    let mut ordered = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        ordered.push(values[from]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            from += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            from -= index[axis] * strides[axis];
            index[axis] = 0;
        }
    }
    ordered
}

fn numbers<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks().0.iter().copied()
}

/// IEEE 754 binary16: sign, 5 bits of exponent with bias 15, 10 bits of fraction.
fn half_to_f64(bits: u16) -> f64 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    sign * match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_exact() {
        for (bits, expected) in [
            (0x0000, 0.0),
            (0x0001, 2f64.powi(-24)),
            (0x03ff, 1023.0 / 16_777_216.0),
            (0x0400, 2f64.powi(-14)),
            (0x3c00, 1.0),
            (0x3555, 0.333_251_953_125),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0xfc00, f64::NEG_INFINITY),
        ] {
            assert_eq!(half_to_f64(bits), expected, "{bits:#06x}");
        }
        assert!(half_to_f64(0x7e00).is_nan());
    }

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
