//! Products of small f32 matrices inside one task.
//!
//! B and C are stored by rows, padded to whole [`PAD`]-wide columns, so that no lane group is partial; A is read one
//! element at a time and may have any strides.
//! Compared with a [GEMM](crate::cpu::gemm) this saves packing and a call, most of the time for 16 tokens.
#![expect(unsafe_code, reason = "bounds are checked once for each product, not once for each element")]

use pulp::Simd;

use crate::cpu::gemm::Matrix;

/// Row lengths of B and C are multiples of this many elements.
pub(super) const PAD: usize = 16;

/// Depths that are summed together: a panel of B this deep stays in cache.
const DEPTH: usize = 256;

/// Rows, `row` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<D> {
    pub(super) data: D,
    pub(super) row: usize,
}

/// `n` rounded up to a multiple of [`PAD`].
pub(super) fn padded(n: usize) -> usize {
    n.next_multiple_of(PAD)
}

/// `C = A B`, or `C += A B` if `accumulate`, in `n` columns, a multiple of [`PAD`].
///
/// Panics if a matrix does not fit its slice.
#[inline(always)]
pub(super) fn matmul<S: Simd>(
    simd: S,
    a: Matrix<'_, f32>,
    b: Rows<&[f32]>,
    c: Rows<&mut [f32]>,
    n: usize,
    accumulate: bool,
) {
    let (m, k) = (a.rows, a.cols);
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(n.is_multiple_of(PAD) && PAD.is_multiple_of(S::F32_LANES));
    assert!((m - 1) * a.row + (k - 1) * a.col < a.data.len());
    assert!((k - 1) * b.row + n <= b.data.len());
    assert!((m - 1) * c.row + n <= c.data.len());
    let (c, c_row) = (c.data, c.row);
    for first in (0..k).step_by(DEPTH) {
        let product = Product {
            a: &a.data[first * a.col..],
            a_row: a.row,
            a_col: a.col,
            b: &b.data[first * b.row..],
            b_row: b.row,
            c_row,
            rows: m,
            depth: DEPTH.min(k - first),
            accumulate: accumulate || first > 0,
        };
        let lanes = S::F32_LANES;
        let mut col = 0;
        // SAFETY: the assertions above bound every element of the three matrices; these calls stay within
        // rows 0..m, columns 0..n and depths first..first + depth.
        unsafe {
            if S::REGISTER_COUNT >= 32 {
                while col + 4 * lanes <= n {
                    product.panel::<S, 4>(simd, col, c);
                    col += 4 * lanes;
                }
            }
            while col + 2 * lanes <= n {
                product.panel::<S, 2>(simd, col, c);
                col += 2 * lanes;
            }
            while col + lanes <= n {
                product.panel::<S, 1>(simd, col, c);
                col += lanes;
            }
        }
    }
}

/// A matmul over one range of depths.
struct Product<'a> {
    a: &'a [f32],
    a_row: usize,
    a_col: usize,
    b: &'a [f32],
    b_row: usize,
    c_row: usize,
    rows: usize,
    depth: usize,
    accumulate: bool,
}

impl Product<'_> {
    /// Computes `COLS` lane groups of all rows of `c`, from column `col` on.
    ///
    /// # Safety
    /// The rows, these columns and the depths must lie within the matrices.
    #[inline(always)]
    unsafe fn panel<S: Simd, const COLS: usize>(&self, simd: S, col: usize, c: &mut [f32]) {
        let mut row = 0;
        // SAFETY: rows stay below `self.rows`; the rest is the caller's promise.
        unsafe {
            while row + 4 <= self.rows {
                self.tile::<S, 4, COLS>(simd, row, col, c);
                row += 4;
            }
            while row < self.rows {
                self.tile::<S, 1, COLS>(simd, row, col, c);
                row += 1;
            }
        }
    }

    /// Computes `COLS` lane groups of `ROWS` rows in registers.
    ///
    /// # Safety
    /// These rows and columns and the depths must lie within the matrices.
    #[inline(always)]
    unsafe fn tile<S: Simd, const ROWS: usize, const COLS: usize>(
        &self,
        simd: S,
        row: usize,
        col: usize,
        c: &mut [f32],
    ) {
        let mut sums = [[simd.splat_f32s(0.0); COLS]; ROWS];
        // SAFETY: the caller promises that these elements exist; lane groups need no alignment.
        unsafe {
            let mut a = self.a.as_ptr().add(row * self.a_row);
            let mut b = self.b.as_ptr().add(col);
            let c = c.as_mut_ptr().add(row * self.c_row + col);
            for _ in 0..self.depth {
                let mut columns = [simd.splat_f32s(0.0); COLS];
                for (j, columns) in columns.iter_mut().enumerate() {
                    *columns = b.add(j * S::F32_LANES).cast::<S::f32s>().read_unaligned();
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let element = simd.splat_f32s(*a.add(i * self.a_row));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = simd.mul_add_e_f32s(element, column, *sum);
                    }
                }
                // Past the last depth these may leave the slices, so they must not claim to be inside.
                a = a.wrapping_add(self.a_col);
                b = b.wrapping_add(self.b_row);
            }
            for (i, sums) in sums.into_iter().enumerate() {
                for (j, sum) in sums.into_iter().enumerate() {
                    let c = c.add(i * self.c_row + j * S::F32_LANES).cast::<S::f32s>();
                    let sum = if self.accumulate { simd.add_f32s(c.read_unaligned(), sum) } else { sum };
                    c.write_unaligned(sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Run<'a> {
        a: Matrix<'a, f32>,
        b: Rows<&'a [f32]>,
        c: Rows<&'a mut [f32]>,
        n: usize,
        accumulate: bool,
    }

    impl pulp::WithSimd for Run<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            matmul(simd, self.a, self.b, self.c, self.n, self.accumulate);
        }
    }

    #[test]
    fn agrees_with_the_definition() {
        crate::cpu::instruction_sets().into_iter().for_each(check);
    }

    fn check(arch: crate::instruction_set::Instructions) {
        for (m, n, k) in [(1, 16, 1), (4, 64, 7), (5, 80, 300), (7, 48, 16), (9, 16, 513), (3, 112, 2)] {
            for transposed in [false, true] {
                for accumulate in [false, true] {
                    let a: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
                    let b: Vec<f32> = (0..k * (n + 16)).map(|i| (i % 5) as f32 - 2.0).collect();
                    let mut c = vec![1.0; m * n];
                    let matrix = if transposed { Matrix::transposed } else { Matrix::new }(&a, m, k);
                    let (row, col) = (matrix.row, matrix.col);
                    let (b_rows, c_rows) =
                        (Rows { data: &b[..], row: n + 16 }, Rows { data: &mut c[..], row: n });
                    arch.dispatch(Run { a: matrix, b: b_rows, c: c_rows, n, accumulate });
                    for i in 0..m {
                        for j in 0..n {
                            let sum: f32 = (0..k).map(|p| a[i * row + p * col] * b[p * (n + 16) + j]).sum();
                            assert_eq!(
                                c[i * n + j],
                                sum + f32::from(accumulate),
                                "({i}, {j}) of {m}x{n}x{k}"
                            );
                        }
                    }
                }
            }
        }
    }
}
