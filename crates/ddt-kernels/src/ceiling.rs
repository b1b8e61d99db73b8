//! The rate that products are measured against.

use candle_core::{DType, Result};

use crate::cpu::gemm::ceiling;
use crate::packed_linear::of_dtype;

/// Floating-point operations a second that all threads of rayon's current pool reach together on products of
/// `dtype` whose factors stay in the first-level cache; takes some tenths of a second.
///
/// No product is faster; how near one comes says how well it feeds the arithmetic.
///
/// # Errors
///
/// If `dtype` is neither f32 nor bf16.
pub fn gemm_peak_flops(dtype: DType) -> Result<f64> {
    of_dtype!("gemm_peak_flops", dtype, T => {
        // The shortest of a few: others may compute beside.
        Ok((0..20).map(|_| ceiling::<T>(20_000)).fold(0.0, f64::max))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_has_a_ceiling_and_integers_have_none() {
        assert!(gemm_peak_flops(DType::BF16).unwrap() > 0.0);
        assert!(gemm_peak_flops(DType::U8).unwrap_err().to_string().contains("U8"));
    }
}
