//! The parts of every CPU kernel: f32 arithmetic in SIMD lanes, one rayon task per group of rows.
//!
//! A kernel is a [`pulp::WithSimd`] structure, run by [`dispatch`] with the widest instruction set of the machine.
//! Tasks are cut by shape only, and their partial sums are added in order, so results do not depend on the number
//! of threads.

pub(crate) mod buffers;
pub(crate) mod element;
pub(crate) mod exp;
pub(crate) mod gemm;
pub(crate) mod lanes;
pub(crate) mod microkernel;
pub(crate) mod pointwise;
pub(crate) mod prefetch;
pub(crate) mod rows;

pub(crate) use crate::instruction_set::dispatch;
#[cfg(test)]
pub(crate) use crate::instruction_set::instruction_sets;
