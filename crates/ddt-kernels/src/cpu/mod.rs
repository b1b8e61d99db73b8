//! The CPU side of every operation: f32 arithmetic in SIMD lanes, one rayon task per group of rows.
//!
//! Each operation's arithmetic is a [`pulp::WithSimd`] structure, run by [`dispatch`] with the widest
//! instruction set of the machine.
//! Tasks are cut by shape alone and their partial sums are added in index order, so results do not
//! depend on the number of threads.

pub(crate) mod add_silu;
pub(crate) mod attention;
pub(crate) mod block;
pub(crate) mod element;
mod exp;
mod fresh;
pub(crate) mod gate_residual;
pub(crate) mod gemm;
mod head;
mod lanes;
pub(crate) mod layer_norm_modulate;
pub(crate) mod linear;
mod matmul;
mod modulation;
pub(crate) mod neighbours;
pub(crate) mod packed_block;
pub(crate) mod rms_norm_modulate;
mod rows;
mod scatter;
mod scratch;
pub(crate) mod silu;
mod softmax;
pub(crate) mod storage;
pub(crate) mod swiglu;

pub(crate) use rows::Rows;

use crate::instruction_set::arch;

/// Runs `op` with the instruction set in use.
fn dispatch<Op: pulp::WithSimd>(op: Op) -> Op::Output {
    arch().dispatch(op)
}

/// Every instruction set that this machine can run, for tests.
#[cfg(test)]
fn instruction_sets() -> Vec<pulp::Arch> {
    crate::InstructionSet::ALL.into_iter().filter_map(crate::InstructionSet::arch).collect()
}
