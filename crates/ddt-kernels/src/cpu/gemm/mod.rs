//! GEMM `C = A B` in registers: one design for f32 and bf16 and for every instruction set.
//!
//! - A ([`ASource`]), activations, is read in place with any strides, or gathered row by row, which makes a
//!   convolution a GEMM without a buffer for its patches.
//! - B ([`PackedB`]), weights, is packed once into panels as wide as two lane groups.
//! - A [microkernel](super::microkernel) keeps a tile, some rows by one panel, in registers over a range of depths.
//! - An [`Epilogue`] changes the sums before they are rounded and written to the [`Destination`], C.
//!
//! Every element of C is summed in the order of depth, by one task: neither the number of threads nor the cut into
//! tasks changes a bit of it.
#![expect(
    unsafe_code,
    reason = "tiles are bounded once for each GEMM; results are written before they are read"
)]

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::element::Element;
use super::microkernel::{EMPTY, Microkernel, Operand, Strip, WithMicrokernel, columns, form};

mod epilogue;
mod operands;
mod peak;

use epilogue::DepthRange;
pub(crate) use epilogue::{
    BiasActivation, Destination, Epilogue, Place, RowOrder, TileRow, prefetch_row, widened,
};
pub(crate) use operands::{ASource, Gather, Matrix, PackedB};
pub use peak::gemm_peak_flops;

/// Bytes of a row of A that are summed before sums return to memory: this much of a panel and of a task's rows stays
/// in the second-level cache.
const DEPTH_BYTES: usize = 2048;
/// Bytes of the rows of one task, at most; a panel gets the rest of the second-level cache. More rows read B fewer
/// times.
const TASK_BYTES: usize = 640 << 10;
/// Tasks per thread, at least, where the size of the GEMM allows, so that no thread waits long.
const TASKS_PER_THREAD: usize = 4;

/// `A B + bias`, row by row.
pub(crate) fn matmul<T: Operand, C: Element>(
    a: ASource<'_, T>,
    b: &PackedB<T>,
    bias: Option<&[f32]>,
) -> Vec<C> {
    collect(a.dims().0 * b.width, |out| {
        gemm(a, b, &Destination::new(out, b.width), &BiasActivation::<C>::bias(bias, b.width));
    })
}

/// Adds `A B` to `out`.
pub(crate) fn matmul_add<T: Operand>(a: ASource<'_, T>, b: &PackedB<T>, out: &mut [f32]) {
    gemm(a, b, &Destination::adding(out, b.width), &BiasActivation::<f32>::bias(None, b.width));
}

/// A vector of `len` elements, all written by `write`, in which a [`gemm`] writes a result of this size.
pub(crate) fn collect<T>(len: usize, write: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut out = Vec::with_capacity(len);
    write(&mut out.spare_capacity_mut()[..len]);
    // SAFETY: `gemm` writes every element of its destination.
    unsafe { out.set_len(len) };
    out
}

/// Writes `A B`, changed by `epilogue`, to `out`, which may have another type.
///
/// Panics unless the depths of A and B agree and `out` has as many elements as the result.
pub(crate) fn gemm<T: Operand, C: Element, E: Epilogue>(
    a: ASource<'_, T>,
    b: &PackedB<T>,
    out: &Destination<'_, C>,
    epilogue: &E,
) {
    let ((rows, depth), panels) = (a.dims(), b.panels());
    assert_eq!(depth, b.depth);
    assert!(out.has_rows(rows));
    assert!(if E::PAIRED { 2 * out.width() <= b.width } else { out.width() == b.width });
    if rows == 0 || panels == 0 {
        return;
    }
    let form = form::<T>(b.instructions);
    let (by_rows, packed);
    let a = match a {
        // Steps of several depths must be together in memory.
        ASource::Matrix(it) if T::DEPTHS > 1 && it.col != 1 => {
            if form.contiguous {
                by_rows = it.by_rows();
                ASource::Matrix(Matrix { data: &by_rows.0, row: by_rows.1, col: 1, ..it })
            } else {
                packed = PackedB::wide(it.t());
                ASource::Transposed(&packed)
            }
        }
        a => a,
    };
    // Tiles of rows, spread evenly over blocks.
    let tallest = form.rows;
    let tiles = rows.div_ceil(tallest);
    let range = depth.min(range_of::<T, C, E>());
    let most = (TASK_BYTES / (tallest * size_of::<T>() * range.max(1))).max(1);
    let block_rows = tallest * tiles.div_ceil(tiles.div_ceil(most));
    let blocks = rows.div_ceil(block_rows);
    let tasks = TASKS_PER_THREAD * rayon::current_num_threads();
    let each = panels.div_ceil(tasks.div_ceil(blocks).min(panels));
    let groups = panels.div_ceil(each);
    (0..blocks * groups).into_par_iter().for_each(|task| {
        let (block, group) = (task / groups, task % groups);
        let rows = block * block_rows..((block + 1) * block_rows).min(rows);
        let panels = group * each..((group + 1) * each).min(panels);
        T::dispatch(b.instructions, Task { a, b, rows, panels, out, epilogue });
    });
}

/// Depths that are summed before sums return to memory: all, where partial sums cannot rest in the destination.
const fn range_of<T: Operand, C: Element, E: Epilogue>() -> usize {
    if E::PAIRED || !C::HOLDS_SUMS { usize::MAX } else { DEPTH_BYTES / size_of::<T>() }
}

struct Task<'a, T: Operand, C, E> {
    a: ASource<'a, T>,
    b: &'a PackedB<T>,
    rows: Range<usize>,
    panels: Range<usize>,
    out: &'a Destination<'a, C>,
    epilogue: &'a E,
}

impl<T: Operand, C: Element, E: Epilogue> WithMicrokernel<T> for Task<'_, T, C, E> {
    type Output = ();

    #[inline(always)]
    fn with_microkernel<K: Microkernel<Elem = T>>(self, mut kernel: K) {
        let Self { a, b, rows, panels, out, epilogue } = self;
        let stride = columns::<K::Simd>();
        assert_eq!(stride, b.columns);
        let mut sums = EMPTY;
        let depths = b.depth;
        let most = range_of::<T, C, E>().min(depths.max(1));
        for begin in (0..depths.max(1)).step_by(most) {
            let depth = most.min(depths - begin);
            let steps = depth.div_ceil(T::DEPTHS);
            let copy;
            let strip = match (a, a.in_place(K::CONTIGUOUS)) {
                (ASource::Transposed(_), _) => None,
                (_, Some(it)) => {
                    let at = it.data.as_ptr().wrapping_add(rows.start * it.row + begin * it.col);
                    Some(Strip { at, row: it.row, step: it.col * T::DEPTHS })
                }
                (_, None) => {
                    copy = a.copied(rows.clone(), begin..begin + depth);
                    Some(Strip { at: copy.0.as_ptr(), row: copy.1, step: T::DEPTHS })
                }
            };
            let range = DepthRange { first: begin == 0, last: begin + depth >= depths };
            for panel in panels.clone() {
                let b_panel = b.panel(panel)[begin * stride..].as_ptr();
                let paired = if E::PAIRED { 2 } else { 1 };
                let col = panel * stride / paired;
                let cols = (stride / paired).min(out.width() - col);
                let mut row = rows.start;
                while row < rows.end {
                    let (strip, last) = match strip {
                        Some(it) => (it.at_row(row - rows.start), rows.end),
                        None => a.packed_strip(row, begin),
                    };
                    let height = kernel.next_rows(rows.end.min(last) - row);
                    let place = Place { rows: row..row + height, col, cols };
                    out.prefetch(&place);
                    epilogue.prefetch(&place);
                    // SAFETY: the strip has `height` rows and `steps` steps: they are in A, whose constructors check
                    // its size, in the copy, or in a panel of A, which `height` does not leave. A panel has the steps
                    // of B's depth, which is A's.
                    unsafe { kernel.tile(height, steps, strip, b_panel, &mut sums) };
                    // SAFETY: no two tasks have the same place; a task finishes one range of depths after the other.
                    unsafe { out.write_tile(kernel.simd(), &place, &sums, range, epilogue) };
                    row += height;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::cpu::buffers::Scratch;
    use crate::cpu::pointwise::Silu;

    /// Small integers, whose sums are exact in any order.
    fn integers(count: usize, modulus: usize) -> Vec<f32> {
        (0..count).map(|i| (i * i % modulus) as f32 - (modulus / 2) as f32).collect()
    }

    #[test]
    fn agrees_with_the_definition_in_every_layout_and_instruction_set() {
        let sizes = [
            (1, 1, 1),
            (14, 32, 8),
            (15, 33, 513),
            (3, 70, 40),
            (127, 5, 3),
            (29, 100, 1025),
            (20, 9, 1024),
            (2, 3, 0),
        ];
        for arch in crate::instruction_set::instruction_sets() {
            for (m, n, k) in sizes {
                let (a, b, bias) = (integers(m * k, 7), integers(k * n, 5), integers(n, 11));
                for (a_by_rows, b_by_rows) in [(true, true), (true, false), (false, true), (false, false)] {
                    let matrix = |by_rows: bool| if by_rows { Matrix::new } else { Matrix::transposed };
                    let source = ASource::Matrix(matrix(a_by_rows)(&a, m, k));
                    let packed = PackedB::with(arch, matrix(b_by_rows)(&b, k, n), Scratch::take);
                    let element = |i: usize, j: usize| -> f32 {
                        let a = |p| if a_by_rows { a[i * k + p] } else { a[p * m + i] };
                        let b = |p| if b_by_rows { b[p * n + j] } else { b[j * k + p] };
                        (0..k).map(|p| a(p) * b(p)).sum()
                    };
                    let want: Vec<f32> = (0..m * n).map(|at| element(at / n, at % n)).collect();
                    assert_eq!(matmul::<f32, f32>(source, &packed, None), want, "{m} x {k} x {n}");
                    let biased: Vec<f32> = matmul(source, &packed, Some(&bias));
                    assert!(biased.iter().enumerate().all(|(at, x)| *x == want[at] + bias[at % n]));
                    let mut sum = want.clone();
                    matmul_add(source, &packed, &mut sum);
                    assert!(sum.iter().zip(&want).all(|(sum, x)| *sum == 2.0 * x));
                }
            }
        }
    }

    /// The rows of a matrix, backwards.
    struct Backwards<'a>(&'a [f32], usize);

    impl Gather<f32> for Backwards<'_> {
        fn gather(&self, row: usize, depths: Range<usize>, out: &mut [f32]) {
            let rows = self.0.len() / self.1;
            out.copy_from_slice(&self.0[(rows - 1 - row) * self.1..][depths]);
        }
    }

    #[test]
    fn gathered_rows_give_the_same_bits_as_a_matrix() {
        for (m, n, k) in [(1, 1, 1), (31, 40, 1300), (9, 70, 512)] {
            let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.73).cos()).collect();
            let b = PackedB::new(Matrix::new(&b, k, n));
            let reversed: Vec<f32> = a.chunks(k).rev().flatten().copied().collect();
            let source = ASource::Gathered { source: &Backwards(&a, k), rows: m, depth: k };
            let want: Vec<f32> = matmul(ASource::rows(&reversed, m, k), &b, None);
            assert_eq!(matmul::<f32, f32>(source, &b, None), want);
        }
    }

    #[test]
    fn residual_and_activation_follow_the_sums_over_all_depths() {
        for (m, n, k) in [(3, 5, 1), (17, 33, 600), (2, 64, 1024)] {
            let (a, b) = (integers(m * k, 7), integers(k * n, 5));
            let (bias, residual) = (integers(n, 11), integers(m * n, 13));
            let (a, b) = (ASource::rows(&a, m, k), PackedB::new(Matrix::new(&b, k, n)));
            let epilogue = BiasActivation {
                bias: Some(&bias),
                residual: Some(&residual[..]),
                activation: Silu,
                width: n,
            };
            let got: Vec<f32> = collect(m * n, |out| gemm(a, &b, &Destination::new(out, n), &epilogue));
            let sums: Vec<f32> = matmul(a, &b, Some(&bias));
            for (at, (got, sum)) in got.into_iter().zip(sums).enumerate() {
                let x = f64::from(sum + residual[at]);
                let want = x / (1.0 + (-x).exp());
                assert!((f64::from(got) - want).abs() <= 1e-6 * want.abs().max(1e-20), "{got} {want}");
            }
        }
    }

    #[test]
    fn pairs_of_bf16_agree_with_f32_by_every_instruction_set() {
        for arch in crate::instruction_set::instruction_sets() {
            let sizes = [
                (1, 1, 1),
                (15, 33, 513),
                (29, 100, 64),
                (17, 20, 2048),
                (2, 3, 0),
                (5, 31, 7),
                (250, 40, 1030),
            ];
            for (m, n, k) in sizes {
                let (a, b, bias) = (integers(m * k, 7), integers(k * n, 5), integers(n, 11));
                let want: Vec<f32> =
                    matmul(ASource::rows(&a, m, k), &PackedB::new(Matrix::transposed(&b, k, n)), Some(&bias));
                let half = |xs: &[f32]| xs.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
                let (a, b) = (half(&a), half(&b));
                let a_t = transposed(&a, m, k);
                for b in [Matrix::transposed(&b, k, n), Matrix::new(&transposed(&b, n, k), k, n)] {
                    let b = PackedB::with(arch, b, Scratch::own);
                    let got: Vec<bf16> = matmul(ASource::rows(&a, m, k), &b, Some(&bias));
                    assert_eq!(got, half(&want), "{m} x {k} x {n}");
                    let got: Vec<f32> = matmul(ASource::rows(&a, m, k), &b, Some(&bias));
                    assert_eq!(got, want, "{m} x {k} x {n}");
                    let by_columns = ASource::Matrix(Matrix::transposed(&a_t, m, k));
                    let got: Vec<f32> = matmul(by_columns, &b, Some(&bias));
                    assert_eq!(got, want, "{m} x {k} x {n}");
                }
            }
        }
    }

    #[test]
    fn bf16_operands_give_f32_sums_that_are_not_rounded() {
        for (m, n, k) in [(3, 5, 1), (17, 33, 600), (5, 31, 2051)] {
            let (a, b, residual) = (integers(m * k, 7), integers(k * n, 5), integers(m * n, 13));
            let want: Vec<f32> =
                matmul(ASource::rows(&a, m, k), &PackedB::new(Matrix::transposed(&b, k, n)), None);
            let half = |xs: &[f32]| xs.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
            let (a, b) = (half(&a), half(&b));
            let (a, b) = (ASource::rows(&a, m, k), PackedB::new(Matrix::transposed(&b, k, n)));
            let epilogue = BiasActivation { residual: Some(&residual[..]), ..BiasActivation::bias(None, n) };
            let got: Vec<f32> = collect(m * n, |out| gemm(a, &b, &Destination::new(out, n), &epilogue));
            let want: Vec<f32> = want.iter().zip(&residual).map(|(sum, x)| sum + x).collect();
            assert_eq!(got, want, "{m} x {k} x {n}");
        }
    }

    fn transposed(rows: &[bf16], count: usize, width: usize) -> Vec<bf16> {
        (0..count * width).map(|at| rows[at % count * width + at / count]).collect()
    }
}
