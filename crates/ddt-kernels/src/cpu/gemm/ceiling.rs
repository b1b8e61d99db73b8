//! What the instruction set could do if memory were no matter.
#![expect(unsafe_code, reason = "reads factors through pointers")]

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use super::tile::{EMPTY, MAX_COLS, columns, next_rows, tile};
use super::unit::{Factor, Unit, WithUnit};
use crate::instruction_set::arch;

/// Steps of the tile: both factors stay in the first-level cache.
const STEPS: usize = 64;

/// Multiply-adds a second of all threads of the current pool together, times two: tiles of the tallest kind, again
/// and again over the same two small factors, `rounds` times on each thread.
pub(crate) fn ceiling<T: Factor>(rounds: usize) -> f64 {
    let threads = rayon::current_num_threads();
    let start = Instant::now();
    let done: usize = (0..threads)
        .into_par_iter()
        .with_max_len(1)
        .map(|_| {
            let mut done = 0;
            T::dispatch(arch(), Tiles { rounds, done: &mut done });
            done
        })
        .sum();
    2.0 * done as f64 / start.elapsed().as_secs_f64()
}

struct Tiles<'a> {
    rounds: usize,
    done: &'a mut usize,
}

impl<T: Factor> WithUnit<T> for Tiles<'_> {
    #[inline(always)]
    fn with_unit<U: Unit<Elem = T>>(self, unit: U) {
        let rows = next_rows::<U::Simd>(usize::MAX);
        let depth = STEPS * T::DEPTHS;
        let a = vec![T::default(); rows * depth];
        let b = vec![T::default(); depth * MAX_COLS];
        let mut sums = EMPTY;
        for _ in 0..self.rounds {
            let (a, b) = (black_box(&a), black_box(&b));
            // SAFETY: `rows` rows of `depth` elements lie in `a`, and `b` has room for the widest panel of as many.
            unsafe { tile(unit, rows, STEPS, a.as_ptr(), (depth, T::DEPTHS), b.as_ptr(), &mut sums) };
        }
        black_box(&sums);
        *self.done = self.rounds * rows * depth * columns::<U::Simd>();
    }
}
