//! The tile of a GEMM: up to 14 rows by one panel, summed in registers.
#![expect(unsafe_code, reason = "reads operands through pointers, without a bounds check for each element")]

use pulp::Simd;

use crate::cpu::fma::{Fma, Operand};

/// Rows of the tallest tile: 28 of 32 registers hold sums, two a row.
pub(crate) const MAX_ROWS: usize = 14;

/// A tile in memory: `MAX_ROWS` rows of two lane groups.
pub(crate) type Tile = [f32; MAX_ROWS * MAX_COLS];

/// Zeros.
pub(crate) const EMPTY: Tile = [0.0; MAX_ROWS * MAX_COLS];

/// Columns of the widest tile.
pub(crate) const MAX_COLS: usize = 32;

/// Elements of one row of a tile: two lane groups.
pub(crate) const fn columns<S: Simd>() -> usize {
    2 * S::F32_LANES
}

/// Rows of the next tile where `remaining` are left: the tallest whose sums fit into the registers.
#[inline(always)]
pub(crate) fn next_rows<S: Simd>(remaining: usize) -> usize {
    let max = if S::REGISTER_COUNT >= 32 { MAX_ROWS } else { 6 };
    [14, 8, 6, 4, 2, 1].into_iter().find(|&rows| rows <= max && rows <= remaining).unwrap_or(0)
}

/// Rows of A in memory: `row` elements apart, their steps of depth `step` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Strip<T> {
    pub(crate) at: *const T,
    pub(crate) row: usize,
    pub(crate) step: usize,
}

impl<T> Strip<T> {
    /// The rows from `row` on.
    #[inline(always)]
    pub(super) fn at_row(self, row: usize) -> Self {
        Self { at: self.at.wrapping_add(row * self.row), ..self }
    }
}

/// Multiplies `rows` rows of A, a number that [`next_rows`] gives, by a panel of packed B to `out`.
///
/// # Safety
///
/// `rows` rows of `steps` steps must be readable from `a`, and `steps` steps of a panel from `b`.
#[inline(always)]
pub(crate) unsafe fn tile<F: Fma>(
    fma: F,
    rows: usize,
    steps: usize,
    a: Strip<F::Elem>,
    b: *const F::Elem,
    out: &mut Tile,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match rows {
            14 => fixed::<F, 14>(fma, steps, a, b, out),
            8 => fixed::<F, 8>(fma, steps, a, b, out),
            6 => fixed::<F, 6>(fma, steps, a, b, out),
            4 => fixed::<F, 4>(fma, steps, a, b, out),
            2 => fixed::<F, 2>(fma, steps, a, b, out),
            _ => fixed::<F, 1>(fma, steps, a, b, out),
        }
    }
}

/// Steps between the prefetch of memory and its use.
const AHEAD: usize = 16;

/// Prefetches the cache line at `at`, which need not exist.
#[inline(always)]
pub(super) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, and every x86-64 machine has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Rows that share a pointer; the instructions' addresses reach the others by multiples of one stride.
const GROUP: usize = 3;

/// [`tile`] with a fixed number of rows.
///
/// # Safety
///
/// As there.
#[inline(always)]
unsafe fn fixed<F: Fma, const ROWS: usize>(
    fma: F,
    steps: usize,
    a: Strip<F::Elem>,
    b: *const F::Elem,
    out: &mut Tile,
) {
    let simd = fma.simd();
    let lanes = <F::Simd as Simd>::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    let Strip { at: mut a, row: a_row, step: a_step } = a;
    // Past the last step these leave the operands, so they must not claim to be inside.
    let mut b = b;
    let (ahead, further) = (GROUP * a_row, 2 * GROUP * a_row);
    for _ in 0..steps {
        let groups = [
            a,
            a.wrapping_add(ahead),
            a.wrapping_add(further),
            a.wrapping_add(further + ahead),
            a.wrapping_add(2 * further),
        ];
        prefetch(b.wrapping_add(AHEAD * 2 * lanes * F::Elem::DEPTHS));
        prefetch(b.wrapping_add((2 * AHEAD + 1) * lanes * F::Elem::DEPTHS));
        prefetch(a.wrapping_add(AHEAD * a_step));
        // SAFETY: the caller promises `steps` steps of ROWS rows and of a panel.
        unsafe {
            let columns = [fma.load(b), fma.load(b.wrapping_add(lanes * F::Elem::DEPTHS))];
            // A loop over rows is not always unrolled, and then the sums leave their registers.
            macro_rules! rows {
                ($($i:literal)*) => {$(
                    if $i < ROWS {
                        let a = fma.splat(groups[$i / GROUP].wrapping_add(($i % GROUP) * a_row));
                        sums[$i] =
                            [fma.mul_add(a, columns[0], sums[$i][0]), fma.mul_add(a, columns[1], sums[$i][1])];
                    }
                )*};
            }
            rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
        }
        a = a.wrapping_add(a_step);
        b = b.wrapping_add(2 * lanes * F::Elem::DEPTHS);
    }
    let (groups, _) = F::Simd::as_mut_simd_f32s(&mut out[..2 * ROWS * lanes]);
    macro_rules! rows {
        ($($i:literal)*) => {$(
            if $i < ROWS {
                groups[2 * $i] = sums[$i][0];
                groups[2 * $i + 1] = sums[$i][1];
            }
        )*};
    }
    rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
}
