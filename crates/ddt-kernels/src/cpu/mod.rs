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
pub(crate) mod rms_norm_modulate;
mod rows;
mod scatter;
mod scratch;
pub(crate) mod silu;
mod softmax;
pub(crate) mod storage;
pub(crate) mod swiglu;

pub(crate) use rows::Rows;

/// Runs `op` with the widest instruction set of this machine.
fn dispatch<Op: pulp::WithSimd>(op: Op) -> Op::Output {
    pulp::Arch::new().dispatch(op)
}

/// Every instruction set that this machine can run, for tests.
#[cfg(test)]
fn instruction_sets() -> Vec<pulp::Arch> {
    let mut sets = vec![pulp::Arch::Scalar, pulp::Arch::new()];
    #[cfg(target_arch = "x86_64")]
    sets.extend(pulp::x86::V3::try_new().map(pulp::Arch::V3));
    sets
}
