//! Tiles by the multiply-adds of SIMD lanes: one f32, or a pair of bf16 summed in f32, per step of depth.
#![expect(
    unsafe_code,
    reason = "loads through pointers, without a bounds check for each; one instruction of its own"
)]

use half::bf16;
use pulp::Simd;
#[cfg(target_arch = "x86_64")]
use pulp::x86::V4;

use super::tile::{Microkernel, Operand, Strip, Tile};
use crate::cpu::prefetch::prefetch;

/// Multiplies and adds elements of one type with one instruction set.
pub(crate) trait Fma: Copy {
    type Simd: Simd;
    type Elem: Operand;
    /// A lane group of steps of B, or one step of A in every lane.
    type Lanes: Copy;

    fn simd(self) -> Self::Simd;

    /// One step of each lane's column.
    ///
    /// # Safety
    /// A step's elements for each lane must be readable.
    unsafe fn load(self, at: *const Self::Elem) -> Self::Lanes;

    /// One step in every lane.
    ///
    /// # Safety
    /// A step's elements must be readable.
    unsafe fn splat(self, at: *const Self::Elem) -> Self::Lanes;

    /// `sum + a b`, summed over the depths of the step.
    fn mul_add(
        self,
        a: Self::Lanes,
        b: Self::Lanes,
        sum: <Self::Simd as Simd>::f32s,
    ) -> <Self::Simd as Simd>::f32s;
}

/// Rows of the tallest tile: 28 of 32 registers hold sums, two a row.
const ROWS: usize = 14;

impl<F: Fma> Microkernel for F {
    type Simd = F::Simd;
    type Elem = F::Elem;

    const ROWS: usize = if F::Simd::REGISTER_COUNT >= 32 { ROWS } else { 6 };
    const CONTIGUOUS: bool = false;

    #[inline(always)]
    fn simd(&self) -> F::Simd {
        Fma::simd(*self)
    }

    /// The tallest tile whose sums fit into the registers.
    #[inline(always)]
    fn next_rows(&self, remaining: usize) -> usize {
        let most = remaining.min(<Self as Microkernel>::ROWS);
        [14, 8, 6, 4, 2, 1].into_iter().find(|&rows| rows <= most).unwrap_or(0)
    }

    #[inline(always)]
    unsafe fn tile(
        &mut self,
        rows: usize,
        steps: usize,
        a: Strip<F::Elem>,
        b: *const F::Elem,
        out: &mut Tile,
    ) {
        let fma = *self;
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
}

/// Steps between the prefetch of memory and its use.
const AHEAD: usize = 16;

/// Rows that share a pointer; the instructions' addresses reach the others by multiples of one stride.
const GROUP: usize = 3;

/// [A tile](Microkernel::tile) with a fixed number of rows.
///
/// # Safety
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

/// An unaligned value: reading it is one instruction even where `read_unaligned` checks its arguments.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// One f32 a step.
#[derive(Clone, Copy)]
pub(super) struct Single<S>(pub(super) S);

impl<S: Simd> Fma for Single<S> {
    type Simd = S;
    type Elem = f32;
    type Lanes = S::f32s;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> S::f32s {
        // SAFETY: the caller promises these elements; lane groups need no alignment.
        unsafe { (*at.cast::<Unaligned<S::f32s>>()).0 }
    }

    #[inline(always)]
    unsafe fn splat(self, at: *const f32) -> S::f32s {
        // SAFETY: the caller promises this element.
        self.0.splat_f32s(unsafe { *at })
    }

    #[inline(always)]
    fn mul_add(self, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s {
        self.0.mul_add_e_f32s(a, b, sum)
    }
}

/// A pair of bf16 a step, widened to f32: for any instruction set.
#[derive(Clone, Copy)]
pub(super) struct WidenedPair<S>(pub(super) S);

impl<S: Simd> WidenedPair<S> {
    /// The first and the second of each pair, exactly.
    #[inline(always)]
    fn widen(self, pairs: S::u32s) -> [S::f32s; 2] {
        let simd = self.0;
        let low = simd.wrapping_dyn_shl_u32s(pairs, simd.splat_u32s(16));
        let high = simd.and_u32s(pairs, simd.splat_u32s(0xFFFF_0000));
        [low, high].map(
            #[inline(always)]
            |it| simd.transmute_f32s_u32s(it),
        )
    }
}

impl<S: Simd> Fma for WidenedPair<S> {
    type Simd = S;
    type Elem = bf16;
    type Lanes = S::u32s;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn load(self, at: *const bf16) -> S::u32s {
        // SAFETY: the caller promises two elements a lane; lane groups need no alignment.
        unsafe { (*at.cast::<Unaligned<S::u32s>>()).0 }
    }

    #[inline(always)]
    unsafe fn splat(self, at: *const bf16) -> S::u32s {
        // SAFETY: the caller promises two elements.
        self.0.splat_u32s(u32::from_le(unsafe { (*at.cast::<Unaligned<u32>>()).0 }))
    }

    #[inline(always)]
    fn mul_add(self, a: S::u32s, b: S::u32s, sum: S::f32s) -> S::f32s {
        let ([a0, a1], [b0, b1]) = (self.widen(a), self.widen(b));
        self.0.mul_add_e_f32s(a1, b1, self.0.mul_add_e_f32s(a0, b0, sum))
    }
}

/// A pair of bf16 a step, multiplied by the instruction for it.
///
/// It rounds each sum of two products once more, to even, and takes numbers below the normal range for zero.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct NativePair(pub(super) V4);

#[cfg(target_arch = "x86_64")]
impl Fma for NativePair {
    type Simd = V4;
    type Elem = bf16;
    type Lanes = <V4 as Simd>::u32s;

    #[inline(always)]
    fn simd(self) -> V4 {
        self.0
    }

    #[inline(always)]
    unsafe fn load(self, at: *const bf16) -> Self::Lanes {
        // SAFETY: the caller promises two elements a lane; lane groups need no alignment.
        unsafe { (*at.cast::<Unaligned<Self::Lanes>>()).0 }
    }

    #[inline(always)]
    unsafe fn splat(self, at: *const bf16) -> Self::Lanes {
        // SAFETY: the caller promises two elements.
        self.0.splat_u32s(unsafe { (*at.cast::<Unaligned<u32>>()).0 })
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, sum: <V4 as Simd>::f32s) -> <V4 as Simd>::f32s {
        // SAFETY: all of these are 64 bytes of which every pattern is valid, and only `native` runs this,
        // which is called where the instruction exists.
        unsafe {
            let [a, b] = [a, b].map(
                #[inline(always)]
                |it| std::mem::transmute::<Self::Lanes, std::arch::x86_64::__m512bh>(it),
            );
            let sum = std::mem::transmute::<<V4 as Simd>::f32s, std::arch::x86_64::__m512>(sum);
            std::mem::transmute(std::arch::x86_64::_mm512_dpbf16_ps(sum, a, b))
        }
    }
}
