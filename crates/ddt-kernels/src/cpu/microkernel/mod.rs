//! The inner loop of every matrix product, chosen by element type and instruction set.
#![expect(unsafe_code, reason = "runs code for instructions that have been detected")]

use half::bf16;
#[cfg(target_arch = "x86_64")]
use pulp::Arch;
use pulp::{Simd, WithSimd};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod fma;
mod tile;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use amx::Amx;
#[cfg(target_arch = "x86_64")]
use fma::NativePair;
use fma::{Single, WidenedPair};
pub(crate) use tile::{
    EMPTY, MAX_COLS, MAX_ROWS, Microkernel, Operand, Strip, Tile, WithMicrokernel, columns,
};

#[cfg(target_arch = "x86_64")]
use crate::instruction_set::Bf16Products;
use crate::instruction_set::Instructions;

impl Operand for f32 {
    const DEPTHS: usize = 1;

    fn dispatch<Op: WithMicrokernel<Self>>(instructions: Instructions, op: Op) -> Op::Output {
        struct Run<Op>(Op);
        impl<Op: WithMicrokernel<f32>> WithSimd for Run<Op> {
            type Output = Op::Output;

            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) -> Op::Output {
                self.0.with_microkernel(Single(simd))
            }
        }
        instructions.dispatch(Run(op))
    }
}

impl Operand for bf16 {
    const DEPTHS: usize = 2;

    fn dispatch<Op: WithMicrokernel<Self>>(instructions: Instructions, op: Op) -> Op::Output {
        struct Run<Op>(Op);
        impl<Op: WithMicrokernel<bf16>> WithSimd for Run<Op> {
            type Output = Op::Output;

            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) -> Op::Output {
                self.0.with_microkernel(WidenedPair(simd))
            }
        }
        #[cfg(target_arch = "x86_64")]
        if let Arch::V4(simd) = instructions.arch() {
            match instructions.bf16() {
                // SAFETY: `simd` and the detected products prove all of the features, and the permission to use AMX.
                #[cfg(target_os = "linux")]
                Bf16Products::Tiles => return unsafe { native(Amx::new(simd), op) },
                // SAFETY: as above.
                Bf16Products::Pairs => return unsafe { native(NativePair(simd), op) },
                _ => {}
            }
        }
        instructions.dispatch(Run(op))
    }
}

/// Runs `op` with the instructions for bf16.
#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi1,bmi2,lzcnt,popcnt"
)]
fn native<K: Microkernel<Elem = bf16>, Op: WithMicrokernel<bf16>>(kernel: K, op: Op) -> Op::Output {
    op.with_microkernel(kernel)
}

/// The properties of a microkernel that decide how a GEMM is cut into tasks.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    /// Rows of the tallest tile.
    pub(crate) rows: usize,
    /// Whether the steps of a row of A must follow one another.
    pub(crate) contiguous: bool,
}

/// The form of the microkernel for `T`.
pub(crate) fn form<T: Operand>(instructions: Instructions) -> Form {
    struct FormOf;
    impl<T> WithMicrokernel<T> for FormOf {
        type Output = Form;

        #[inline(always)]
        fn with_microkernel<K: Microkernel<Elem = T>>(self, _: K) -> Form {
            Form { rows: K::ROWS, contiguous: K::CONTIGUOUS }
        }
    }
    T::dispatch(instructions, FormOf)
}
