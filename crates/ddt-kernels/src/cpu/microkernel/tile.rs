//! The interface of microkernels: each multiplies a tile, some rows of A by one panel of packed B, in registers.
#![expect(unsafe_code, reason = "operands are pointers, bounded once for each GEMM")]

use pulp::Simd;

use crate::cpu::buffers::Pooled;
use crate::instruction_set::Instructions;

/// Rows of the tallest tile of any microkernel.
pub(crate) const MAX_ROWS: usize = 32;

/// Columns of the widest tile.
pub(crate) const MAX_COLS: usize = 32;

/// A tile in memory: rows of two lane groups, one after the other.
pub(crate) type Tile = [f32; MAX_ROWS * MAX_COLS];

/// Zeros.
pub(crate) const EMPTY: Tile = [0.0; MAX_ROWS * MAX_COLS];

/// Elements of one row of a tile: two lane groups.
pub(crate) const fn columns<S: Simd>() -> usize {
    2 * S::F32_LANES
}

/// An element type of A and B.
pub(crate) trait Operand: Pooled {
    /// Neighbouring depths that make one step.
    const DEPTHS: usize;

    /// Runs `op` with the best microkernel of `instructions`.
    fn dispatch<Op: WithMicrokernel<Self>>(instructions: Instructions, op: Op) -> Op::Output;
}

/// Multiplies tiles with some instructions.
pub(crate) trait Microkernel {
    type Simd: Simd;
    type Elem: Operand;

    /// Rows of the tallest tile.
    const ROWS: usize;

    /// Whether the steps of a row of A must follow one another in memory, fastest from the start of a cache line.
    const CONTIGUOUS: bool;

    fn simd(&self) -> Self::Simd;

    /// Rows of the next tile where `remaining` are left.
    fn next_rows(&self, remaining: usize) -> usize;

    /// Multiplies `rows` rows of A, a number that [`next_rows`](Self::next_rows) gives, by a panel of packed B to `out`.
    ///
    /// # Safety
    /// `rows` rows of `steps` steps must be readable from `a`, and `steps` steps of a panel from `b`.
    unsafe fn tile(
        &mut self,
        rows: usize,
        steps: usize,
        a: Strip<Self::Elem>,
        b: *const Self::Elem,
        out: &mut Tile,
    );
}

/// Code that runs with any microkernel of `T`. Implementations must be marked `#[inline(always)]`, as must all that
/// they call in loops: code that is not inlined into the instruction set calls every instruction as a function.
pub(crate) trait WithMicrokernel<T> {
    type Output;

    fn with_microkernel<K: Microkernel<Elem = T>>(self, kernel: K) -> Self::Output;
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
    pub(crate) fn at_row(self, row: usize) -> Self {
        Self { at: self.at.wrapping_add(row * self.row), ..self }
    }
}
