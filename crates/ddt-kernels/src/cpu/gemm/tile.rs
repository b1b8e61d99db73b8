//! The part of a product that stays in registers.
#![expect(unsafe_code, reason = "reads factors through pointers, without a bounds check for each element")]

use pulp::Simd;

use super::unit::{Factor, Unit};

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

/// Rows of the next tile where `left` remain: the tallest that its sums leave registers for.
#[inline(always)]
pub(crate) fn next_rows<S: Simd>(left: usize) -> usize {
    let max = if S::REGISTER_COUNT >= 32 { MAX_ROWS } else { 6 };
    [14, 8, 6, 4, 2, 1].into_iter().find(|&rows| rows <= max && rows <= left).unwrap_or(0)
}

/// Writes `rows` rows, one of those that [`next_rows`] gives, of the product to `out`.
///
/// `a` is the first element of the left factor's first row, whose rows lie `a_row` elements apart and whose
/// steps `a_step`; `b` is a packed panel.
///
/// # Safety
///
/// `rows` rows of `steps` steps must be readable from `a`, and `steps` steps of a panel from `b`.
#[inline(always)]
pub(crate) unsafe fn tile<U: Unit>(
    unit: U,
    rows: usize,
    steps: usize,
    a: *const U::Elem,
    (a_row, a_step): (usize, usize),
    b: *const U::Elem,
    out: &mut Tile,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match rows {
            14 => fixed::<U, 14>(unit, steps, a, (a_row, a_step), b, out),
            8 => fixed::<U, 8>(unit, steps, a, (a_row, a_step), b, out),
            6 => fixed::<U, 6>(unit, steps, a, (a_row, a_step), b, out),
            4 => fixed::<U, 4>(unit, steps, a, (a_row, a_step), b, out),
            2 => fixed::<U, 2>(unit, steps, a, (a_row, a_step), b, out),
            _ => fixed::<U, 1>(unit, steps, a, (a_row, a_step), b, out),
        }
    }
}

/// Steps between asking for memory and using it.
const AHEAD: usize = 16;

/// Asks for the cache line at `at`, which need not exist.
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
unsafe fn fixed<U: Unit, const ROWS: usize>(
    unit: U,
    steps: usize,
    a: *const U::Elem,
    (a_row, a_step): (usize, usize),
    b: *const U::Elem,
    out: &mut Tile,
) {
    let simd = unit.simd();
    let lanes = <U::Simd as Simd>::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    // Past the last step these leave the factors, so they must not claim to be inside.
    let (mut a, mut b) = (a, b);
    let (ahead, further) = (GROUP * a_row, 2 * GROUP * a_row);
    for _ in 0..steps {
        let groups = [
            a,
            a.wrapping_add(ahead),
            a.wrapping_add(further),
            a.wrapping_add(further + ahead),
            a.wrapping_add(2 * further),
        ];
        prefetch(b.wrapping_add(AHEAD * 2 * lanes * U::Elem::DEPTHS));
        prefetch(b.wrapping_add((2 * AHEAD + 1) * lanes * U::Elem::DEPTHS));
        prefetch(a.wrapping_add(AHEAD * a_step));
        // SAFETY: the caller promises `steps` steps of ROWS rows and of a panel.
        unsafe {
            let right = [unit.load(b), unit.load(b.wrapping_add(lanes * U::Elem::DEPTHS))];
            // A loop over rows is not always unrolled, and then the sums leave their registers.
            macro_rules! rows {
                ($($i:literal)*) => {$(
                    if $i < ROWS {
                        let left = unit.splat(groups[$i / GROUP].wrapping_add(($i % GROUP) * a_row));
                        sums[$i] =
                            [unit.mul_add(left, right[0], sums[$i][0]), unit.mul_add(left, right[1], sums[$i][1])];
                    }
                )*};
            }
            rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
        }
        a = a.wrapping_add(a_step);
        b = b.wrapping_add(2 * lanes * U::Elem::DEPTHS);
    }
    let (groups, _) = U::Simd::as_mut_simd_f32s(&mut out[..2 * ROWS * lanes]);
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
