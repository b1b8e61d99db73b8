//! The multiply-add of a GEMM's inner loop: one f32, or a pair of bf16 summed in f32, per step of depth.
#![expect(
    unsafe_code,
    reason = "loads through pointers, without a bounds check for each; one instruction of its own"
)]

use half::bf16;
#[cfg(target_arch = "x86_64")]
use pulp::x86::V4;
use pulp::{Arch, Simd, WithSimd};

use crate::cpu::buffers::Pooled;
#[cfg(target_arch = "x86_64")]
use crate::instruction_set::has_bf16;

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
    ///
    /// A step's elements for each lane must be readable.
    unsafe fn load(self, at: *const Self::Elem) -> Self::Lanes;

    /// One step in every lane.
    ///
    /// # Safety
    ///
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

/// An element type of A and B.
pub(crate) trait Operand: Pooled {
    /// Neighbouring depths that make one step.
    const DEPTHS: usize;

    /// Runs `op` with the best multiply-add of `arch`.
    fn dispatch<Op: WithFma<Self>>(arch: Arch, op: Op);
}

/// Code that runs with any multiply-add of `T`. Implementations must be marked `#[inline(always)]`, as must all
/// that they call in loops: code that is not inlined into the instruction set calls every instruction as a function.
pub(crate) trait WithFma<T> {
    fn with_fma<F: Fma<Elem = T>>(self, fma: F);
}

impl Operand for f32 {
    const DEPTHS: usize = 1;

    fn dispatch<Op: WithFma<Self>>(arch: Arch, op: Op) {
        struct Run<Op>(Op);
        impl<Op: WithFma<f32>> WithSimd for Run<Op> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                self.0.with_fma(Single(simd));
            }
        }
        arch.dispatch(Run(op));
    }
}

impl Operand for bf16 {
    const DEPTHS: usize = 2;

    fn dispatch<Op: WithFma<Self>>(arch: Arch, op: Op) {
        struct Run<Op>(Op);
        impl<Op: WithFma<bf16>> WithSimd for Run<Op> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                self.0.with_fma(WidenedPair(simd));
            }
        }
        #[cfg(target_arch = "x86_64")]
        if let (Arch::V4(simd), true) = (arch, has_bf16()) {
            // SAFETY: `simd` proves all of the features but the last, which has just been detected.
            return unsafe { native(NativePair(simd), op) };
        }
        arch.dispatch(Run(op));
    }
}

/// Runs `op` with the instruction for pairs of bf16.
#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi1,bmi2,lzcnt,popcnt"
)]
fn native<Op: WithFma<bf16>>(fma: NativePair, op: Op) {
    op.with_fma(fma);
}

/// An unaligned value: reading it is one instruction even where `read_unaligned` checks its arguments.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// One f32 a step.
#[derive(Clone, Copy)]
struct Single<S>(S);

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
struct WidenedPair<S>(S);

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
struct NativePair(V4);

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
