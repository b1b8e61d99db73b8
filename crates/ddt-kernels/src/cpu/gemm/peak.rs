//! The arithmetic peak that GEMMs are measured against: tiles whose operands never leave the first-level cache.
#![expect(unsafe_code, reason = "reads operands through pointers")]

use std::hint::black_box;
use std::time::Instant;

use candle_core::{DType, Result, bail};
use half::bf16;
use rayon::prelude::*;

use crate::cpu::buffers::Scratch;
use crate::cpu::microkernel::{EMPTY, MAX_COLS, Microkernel, Operand, Strip, WithMicrokernel, columns};
use crate::instruction_set::instructions;

/// Steps of the tile: both operands stay in the first-level cache.
const STEPS: usize = 128;
/// Tiles that each thread computes in one measurement.
const ROUNDS: usize = 10_000;

/// Peak floating-point operations per second of GEMMs in `dtype`, on all threads of rayon's current pool.
///
/// Measured in some tenths of a second with operands that stay in the first-level cache, so no GEMM is faster.
///
/// # Errors
/// If `dtype` is neither f32 nor bf16.
pub fn gemm_peak_flops(dtype: DType) -> Result<f64> {
    let measure = match dtype {
        DType::F32 => peak::<f32>,
        DType::BF16 => peak::<bf16>,
        other => bail!("gemm_peak_flops: expected f32 or bf16, got {other:?}"),
    };
    // The best of a few: other programs may run meanwhile.
    Ok((0..20).map(|_| measure()).fold(0.0, f64::max))
}

/// Twice the multiply-adds per second of all threads: the tallest tile, again and again.
fn peak<T: Operand>() -> f64 {
    let threads = rayon::current_num_threads();
    let start = Instant::now();
    let done: usize = (0..threads)
        .into_par_iter()
        .with_max_len(1)
        .map(|_| {
            let mut done = 0;
            T::dispatch(instructions(), Tiles { done: &mut done });
            done
        })
        .sum();
    2.0 * done as f64 / start.elapsed().as_secs_f64()
}

struct Tiles<'a> {
    /// Multiply-adds.
    done: &'a mut usize,
}

impl<T: Operand> WithMicrokernel<T> for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_microkernel<K: Microkernel<Elem = T>>(self, mut kernel: K) {
        let rows = K::ROWS;
        let depth = STEPS * T::DEPTHS;
        let (a, b) = (Scratch::own(rows * depth), Scratch::own(depth * MAX_COLS));
        let mut sums = EMPTY;
        for _ in 0..ROUNDS {
            let (a, b): (&[T], &[T]) = black_box((&a, &b));
            let a = Strip { at: a.as_ptr(), row: depth, step: T::DEPTHS };
            // SAFETY: `a` has `rows` rows of `depth` elements, and `b` has room for the widest panel of as many.
            unsafe { kernel.tile(rows, STEPS, a, b.as_ptr(), &mut sums) };
        }
        black_box(&sums);
        *self.done = ROUNDS * rows * depth * columns::<K::Simd>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_have_a_peak_and_integers_an_error() {
        assert!(gemm_peak_flops(DType::BF16).unwrap() > 0.0);
        assert!(gemm_peak_flops(DType::U8).unwrap_err().to_string().contains("U8"));
    }
}
