//! Tiles of bf16 by AMX, whose registers are matrices: one instruction multiplies 16 rows of A by 16 columns of B over
//! 32 depths, 8192 multiply-adds.
//!
//! Four of the eight registers hold sums, two halves of A's rows by two halves of a panel's columns; a panel of packed
//! pairs already has the layout that the instruction expects of B.
//!
//! ```text
//!                 tmm6   tmm7     32 depths of 32 columns
//!     tmm4 rows:  tmm0   tmm1
//!     tmm5 rows:  tmm2   tmm3
//! ```
//!
//! Sums of even and of odd depths are kept apart over 32 depths; numbers below the normal range count as zero.
#![expect(unsafe_code, reason = "AMX has no safe interface: its registers are named in assembly")]

use std::arch::asm;

use half::bf16;
use pulp::x86::V4;

use super::tile::{MAX_COLS, Microkernel, Strip, Tile};

/// Rows of a register.
const ROWS: usize = 16;
/// Bytes of a register's row.
const ROW_BYTES: usize = 64;
/// Steps, pairs of depths, that one instruction multiplies.
const STEPS: usize = 16;
/// Bytes of a step of a panel, and of a row of a tile.
const STRIDE: usize = 4 * MAX_COLS;

/// The registers of this thread, from their first configuration until this is dropped.
pub(super) struct Amx {
    simd: V4,
    /// The height of tiles that the registers are configured for; 0 before the first.
    rows: usize,
}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Amx {
    /// # Safety
    /// The process must have the system's permission to use AMX.
    pub(super) unsafe fn new(simd: V4) -> Self {
        Self { simd, rows: 0 }
    }

    /// Configures the registers for tiles of `rows` rows.
    #[inline(always)]
    fn configure(&mut self, rows: usize) {
        if self.rows == rows {
            return;
        }
        self.rows = rows;
        let first = rows.min(ROWS) as u8;
        // Lower tiles use the first half only; the second needs some valid height.
        let second = if rows > ROWS { rows - ROWS } else { ROWS } as u8;
        let mut heights = [0; 16];
        heights[..8].copy_from_slice(&[first, first, second, second, first, second, ROWS as u8, ROWS as u8]);
        let mut row_bytes = [0; 16];
        row_bytes[..8].fill(ROW_BYTES as u16);
        let configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows: heights };
        // SAFETY: `new`'s caller promises AMX; the configuration is one of palette 1: 8 registers of at most 16 rows of
        // 64 bytes. The compiler keeps nothing in these registers.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly, preserves_flags));
        }
    }
}

impl Drop for Amx {
    #[inline(always)]
    fn drop(&mut self) {
        if self.rows > 0 {
            // SAFETY: `new`'s caller promises AMX. Registers that are at rest need not be saved when threads change.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
        }
    }
}

impl Microkernel for Amx {
    type Simd = V4;
    type Elem = bf16;

    const ROWS: usize = 2 * ROWS;
    const CONTIGUOUS: bool = true;

    #[inline(always)]
    fn simd(&self) -> V4 {
        self.simd
    }

    #[inline(always)]
    fn next_rows(&self, remaining: usize) -> usize {
        remaining.min(2 * ROWS)
    }

    #[inline(always)]
    unsafe fn tile(&mut self, rows: usize, steps: usize, a: Strip<bf16>, b: *const bf16, out: &mut Tile) {
        debug_assert!((1..=2 * ROWS).contains(&rows) && a.step == 2);
        self.configure(rows);
        let (a_at, a_row) = (a.at.cast::<u8>(), 2 * a.row);
        let (whole, rest) = (steps / STEPS, steps % STEPS);
        // SAFETY: the caller promises these steps of A and B, and the registers are configured for `rows`.
        unsafe { multiply(rows, whole, false, (a_at, a_row), b.cast(), out) };
        if rest > 0 {
            // Registers have whole rows, so the last steps are copied and padded with zeros.
            let mut last_a = [[0u8; ROW_BYTES]; 2 * ROWS];
            let mut last_b = [0u8; STEPS * STRIDE];
            for (i, row) in last_a.iter_mut().enumerate().take(rows) {
                let from = a_at.wrapping_add(i * a_row + whole * ROW_BYTES);
                // SAFETY: the caller promises `rest` more steps of 4 bytes, and `rest` is less than 16.
                unsafe { std::ptr::copy_nonoverlapping(from, row.as_mut_ptr(), 4 * rest) };
            }
            let from = b.cast::<u8>().wrapping_add(whole * STEPS * STRIDE);
            // SAFETY: as above: `rest` more steps of a panel; and the copies have 16 steps.
            unsafe {
                std::ptr::copy_nonoverlapping(from, last_b.as_mut_ptr(), rest * STRIDE);
                multiply(rows, 1, true, (last_a.as_ptr().cast(), ROW_BYTES), last_b.as_ptr(), out);
            }
        }
    }
}

/// Multiplies `blocks` times 16 steps of `rows` rows of A, `a.1` bytes apart, by a panel, to `out`, or adds to it.
///
/// # Safety
/// The operands must be readable, and the registers configured for `rows`.
#[inline(always)]
unsafe fn multiply(
    rows: usize,
    blocks: usize,
    add: bool,
    a: (*const u8, usize),
    b: *const u8,
    out: &mut Tile,
) {
    let (a, a_row) = a;
    // SAFETY: the caller's promise; `out` has 32 rows of `STRIDE` bytes, of which `rows` are read and written. The
    // registers are named as clobbered, and nothing but their configuration outlives a block of assembly.
    unsafe {
        if rows > ROWS {
            asm!(
                "test {add:e}, {add:e}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{out} + {stride}*1]",
                "tileloadd tmm1, [{out} + {stride}*1 + 64]",
                "tileloadd tmm2, [{out} + {stride}*1 + 2048]",
                "tileloadd tmm3, [{out} + {stride}*1 + 2112]",
                "3:",
                "test {blocks}, {blocks}",
                "jz 5f",
                "4:",
                "tileloadd tmm6, [{b} + {stride}*1]",
                "tileloadd tmm4, [{a} + {a_row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {stride}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{lower} + {a_row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 64",
                "add {lower}, 64",
                "add {b}, 2048",
                "dec {blocks}",
                "jnz 4b",
                "5:",
                "tilestored [{out} + {stride}*1], tmm0",
                "tilestored [{out} + {stride}*1 + 64], tmm1",
                "tilestored [{out} + {stride}*1 + 2048], tmm2",
                "tilestored [{out} + {stride}*1 + 2112], tmm3",
                add = in(reg) u32::from(add),
                blocks = inout(reg) blocks => _,
                a = inout(reg) a => _,
                lower = inout(reg) a.wrapping_add(ROWS * a_row) => _,
                a_row = in(reg) a_row,
                b = inout(reg) b => _,
                stride = in(reg) STRIDE,
                out = in(reg) out.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        } else {
            asm!(
                "test {add:e}, {add:e}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{out} + {stride}*1]",
                "tileloadd tmm1, [{out} + {stride}*1 + 64]",
                "3:",
                "test {blocks}, {blocks}",
                "jz 5f",
                "4:",
                "tileloadd tmm4, [{a} + {a_row}*1]",
                "tileloadd tmm6, [{b} + {stride}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {stride}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {a}, 64",
                "add {b}, 2048",
                "dec {blocks}",
                "jnz 4b",
                "5:",
                "tilestored [{out} + {stride}*1], tmm0",
                "tilestored [{out} + {stride}*1 + 64], tmm1",
                add = in(reg) u32::from(add),
                blocks = inout(reg) blocks => _,
                a = inout(reg) a => _,
                a_row = in(reg) a_row,
                b = inout(reg) b => _,
                stride = in(reg) STRIDE,
                out = in(reg) out.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
