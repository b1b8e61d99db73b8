//! What becomes of a tile of the product.
#![expect(unsafe_code, reason = "tasks write disjoint tiles of one result")]

use std::mem::MaybeUninit;

use half::bf16;
use pulp::Simd;

use super::tile::MAX_COLS;
use crate::cpu::element::Element;
use crate::cpu::scatter::Scatter;

/// Where a tile lies in the product, and its sums.
pub(crate) struct Sums<'a> {
    pub(crate) row: usize,
    pub(crate) rows: usize,
    pub(crate) col: usize,
    pub(crate) cols: usize,
    /// `rows` rows, `stride` elements apart.
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
    /// Whether these are sums over the first depths; if not, they add to what came before.
    pub(crate) first: bool,
}

/// Takes the tiles of a product.
///
/// [`product`](super::product) hands every tile of every range of depths over once, those of one place in the
/// order of depth and in one task.
pub(crate) trait Finish: Sync {
    /// Whether tiles must be sums over all depths.
    const WHOLE: bool;

    fn tile<S: Simd>(&self, simd: S, sums: Sums<'_>);
}

/// Stores the product row-major, plus `bias` if there is one.
pub(crate) struct Store<'a> {
    out: Scatter<'a, MaybeUninit<f32>>,
    width: usize,
    bias: Option<&'a [f32]>,
    /// Whether to add to what is there.
    add: bool,
}

impl<'a> Store<'a> {
    /// Into `out`, rows of `width`.
    pub(super) fn new(out: &'a mut [MaybeUninit<f32>], width: usize, bias: Option<&'a [f32]>) -> Self {
        Self { out: Scatter::new(out), width, bias, add: false }
    }

    /// Adds to `out`, rows of `width`.
    pub(super) fn adding(out: &'a mut [f32], width: usize) -> Self {
        // SAFETY: the layouts are equal, and `Store` writes nothing uninitialised.
        let out = unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<f32>]) };
        Self { out: Scatter::new(out), width, bias: None, add: true }
    }
}

impl Finish for Store<'_> {
    const WHOLE: bool = false;

    #[inline(always)]
    fn tile<S: Simd>(&self, _: S, sums: Sums<'_>) {
        let Sums { row, rows, col, cols, values, stride, first } = sums;
        let bias = self.bias.map(|bias| &bias[col..][..cols]);
        for (i, values) in values.chunks_exact(stride).take(rows).enumerate() {
            // SAFETY: tiles of different places do not overlap, and those of one place are handed over one
            // after the other.
            let out = unsafe { self.out.range_mut((row + i) * self.width + col, cols) };
            let pairs = out.iter_mut().zip(values);
            match (first && !self.add, bias) {
                (true, None) => pairs.for_each(|(out, x)| {
                    out.write(*x);
                }),
                (true, Some(bias)) => pairs.zip(bias).for_each(|((out, x), bias)| {
                    out.write(x + bias);
                }),
                // SAFETY: the tile of the first depths has been written here, or the caller's numbers are here.
                (false, _) => pairs.for_each(|(out, x)| unsafe { *out.assume_init_mut() += x }),
            }
        }
    }
}

/// Stores the product rounded to bf16, row-major, plus `bias` if there is one.
pub(crate) struct Round<'a> {
    out: Scatter<'a, MaybeUninit<bf16>>,
    width: usize,
    bias: Option<&'a [f32]>,
}

impl<'a> Round<'a> {
    /// Into `out`, rows of `width`.
    pub(super) fn new(out: &'a mut [MaybeUninit<bf16>], width: usize, bias: Option<&'a [f32]>) -> Self {
        Self { out: Scatter::new(out), width, bias }
    }
}

impl Finish for Round<'_> {
    const WHOLE: bool = true;

    #[inline(always)]
    fn tile<S: Simd>(&self, _: S, sums: Sums<'_>) {
        let Sums { row, rows, col, cols, values, stride, .. } = sums;
        let mut biases = [0.0; MAX_COLS];
        if let Some(bias) = self.bias {
            biases[..cols].copy_from_slice(&bias[col..][..cols]);
        }
        let mut biased = [0.0; MAX_COLS];
        let mut rounded = [bf16::ZERO; MAX_COLS];
        for (i, values) in values.chunks_exact(stride).take(rows).enumerate() {
            for ((biased, x), bias) in biased.iter_mut().zip(values).zip(&biases) {
                *biased = x + bias;
            }
            bf16::narrow(&biased[..stride], &mut rounded[..stride]);
            // SAFETY: tiles of different places do not overlap.
            let out = unsafe { self.out.range_mut((row + i) * self.width + col, cols) };
            for (out, x) in out.iter_mut().zip(&rounded) {
                out.write(*x);
            }
        }
    }
}
