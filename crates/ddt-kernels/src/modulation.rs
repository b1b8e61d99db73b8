//! The modulation of an operation (shift and scale, gate, addend): one tensor, or a weighted sum of a few.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use pulp::Simd;

use crate::cpu::element::{Element, views};
use crate::cpu::gemm::{TileRow, prefetch_row, widened};
use crate::cpu::lanes::update;
use crate::cpu::rows::{Rows, Task};
use crate::op::{check_alike, check_shape};

/// Terms of a weighted sum, at most.
const MAX_TERMS: usize = 3;

/// The modulation that an operation reads: a tensor, or a weighted sum of up to three tensors of one shape.
///
/// ```text
/// modulation = sum_i weight_i tensor_i
/// ```
///
/// A sum is computed in f32 where the operation reads it and never written to memory; it needs tensors on the CPU that
/// depend on no variable. It serves extrapolation: a forecast of a modulation from earlier ones is such a sum.
/// `&Tensor` converts into a source.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ddt_kernels::{ModulationSource, gate_residual};
///
/// # fn main() -> candle_core::Result<()> {
/// let x = Tensor::ones((1, 2, 4), DType::F32, &Device::Cpu)?;
/// let (before, now) = (Tensor::full(1f32, (1, 1, 4), x.device())?, Tensor::full(3f32, (1, 1, 4), x.device())?);
/// // One step further along the line through both.
/// let next = ModulationSource::sum(&[(&now, 2.0), (&before, -1.0)])?;
/// let out = gate_residual(&x, next, &x)?;
/// assert_eq!(out.to_vec3::<f32>()?, [[[6.0; 4]; 2]]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct ModulationSource<'a> {
    /// The first `count` are set.
    terms: [(&'a Tensor, f32); MAX_TERMS],
    count: usize,
    first: Option<usize>,
}

impl<'a> From<&'a Tensor> for ModulationSource<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self { terms: [(tensor, 1.0); MAX_TERMS], count: 1, first: None }
    }
}

impl<'a> ModulationSource<'a> {
    /// The sum of each of `terms` times its weight.
    ///
    /// # Errors
    ///
    /// If there are no terms or more than three, or if their shapes, dtypes or devices differ.
    pub fn sum(terms: &[(&'a Tensor, f64)]) -> Result<Self> {
        let Some((&(tensor, _), others)) = terms.split_first().filter(|_| terms.len() <= MAX_TERMS) else {
            bail!("modulation source: expected 1 to {MAX_TERMS} terms, got {}", terms.len());
        };
        for (other, _) in others {
            check_alike("modulation source", &[("the first term", tensor), ("another term", other)])?;
            check_shape("modulation source", "another term", other, tensor.dims())?;
        }
        let mut source = Self { count: terms.len(), ..Self::from(tensor) };
        for (place, (tensor, weight)) in source.terms.iter_mut().zip(terms) {
            *place = (tensor, *weight as f32);
        }
        Ok(source)
    }

    /// The columns of the tensors' rows from `first` on, as many as the operation reads. Without this, an operation
    /// expects rows with its columns only.
    pub fn from_column(self, first: usize) -> Self {
        Self { first: Some(first), ..self }
    }

    /// The tensors. Places after the last term repeat the first.
    pub(crate) fn tensors(&self) -> [&'a Tensor; MAX_TERMS] {
        self.terms.map(|(tensor, _)| tensor)
    }

    /// The elements of [`tensors`](Self::tensors) with their weights.
    pub(crate) fn values<'b, T>(&self, elements: [&'b [T]; MAX_TERMS]) -> Values<'b, T> {
        Values { elements, weights: self.terms.map(|(_, weight)| weight), count: self.count }
    }

    /// The source as one tensor that has only `columns`, unless it is a weighted sum.
    pub(crate) fn single(&self, columns: &Modulation) -> Result<Option<Tensor>> {
        match self.terms {
            [(tensor, 1.0), ..] if self.count == 1 => {
                tensor.narrow(2, columns.first, columns.width).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// The elements of a [`ModulationSource`].
#[derive(Clone, Copy)]
pub(crate) struct Values<'a, T> {
    elements: [&'a [T]; MAX_TERMS],
    weights: [f32; MAX_TERMS],
    count: usize,
}

impl<'a, T> From<&'a [T]> for Values<'a, T> {
    fn from(elements: &'a [T]) -> Self {
        Self { elements: [elements; MAX_TERMS], weights: [1.0; MAX_TERMS], count: 1 }
    }
}

/// Where a row of a sum is computed.
pub(crate) struct RowScratch {
    sum: Vec<f32>,
    terms: [Vec<f32>; MAX_TERMS],
}

impl<T: Element> Values<'_, T> {
    fn is_sum(&self) -> bool {
        self.count > 1 || self.weights[0] != 1.0
    }

    /// Scratch for rows of `width`.
    pub(crate) fn scratch(&self, width: usize) -> RowScratch {
        if self.is_sum() {
            RowScratch { sum: vec![0.0; width], terms: std::array::from_fn(|_| T::scratch(width)) }
        } else {
            RowScratch { sum: T::scratch(width), terms: Default::default() }
        }
    }

    /// The `columns` of row `source` in f32.
    #[inline(always)]
    pub(crate) fn row<'b, S: Simd>(
        &'b self,
        simd: S,
        columns: &Modulation,
        source: usize,
        scratch: &'b mut RowScratch,
    ) -> &'b [f32] {
        let (at, width) = (columns.at(source), columns.width);
        let RowScratch { sum, terms } = scratch;
        if !self.is_sum() {
            return T::view(&self.elements[0][at..][..width], sum);
        }
        let [a, b, c] = views(self.elements, at..at + width, terms);
        let weights = self.weights;
        let [u, v, w] = [weights[0], weights[1], weights[2]].map(
            #[inline(always)]
            |weight| simd.splat_f32s(weight),
        );
        let sum = &mut sum[..width];
        match self.count {
            1 => update(
                simd,
                [&mut *sum],
                [a],
                #[inline(always)]
                |_, [a]| [simd.mul_f32s(u, a)],
            ),
            2 => update(
                simd,
                [&mut *sum],
                [a, b],
                #[inline(always)]
                |_, [a, b]| [simd.mul_add_e_f32s(v, b, simd.mul_f32s(u, a))],
            ),
            _ => update(
                simd,
                [&mut *sum],
                [a, b, c],
                #[inline(always)]
                |_, [a, b, c]| [simd.mul_add_e_f32s(w, c, simd.mul_add_e_f32s(v, b, simd.mul_f32s(u, a)))],
            ),
        }
        sum
    }

    /// `cols` elements from element `at` on, in f32, as part of a GEMM's tile.
    #[inline(always)]
    pub(crate) fn tile_row<S: Simd>(&self, simd: S, at: usize, cols: usize) -> TileRow {
        let mut sum = widened(self.elements[0], at, cols);
        if self.is_sum() {
            sum.iter_mut().for_each(|x| *x *= self.weights[0]);
            for (elements, weight) in self.elements.iter().zip(self.weights).take(self.count).skip(1) {
                let (term, weight) = (widened(elements, at, cols), simd.splat_f32s(weight));
                update(
                    simd,
                    [&mut sum],
                    [&term],
                    #[inline(always)]
                    |[sum], [x]| [simd.mul_add_e_f32s(weight, x, sum)],
                );
            }
        }
        sum
    }

    /// Prefetches what [`tile_row`](Self::tile_row) reads.
    #[inline(always)]
    pub(crate) fn prefetch(&self, at: usize) {
        self.elements.iter().take(self.count).for_each(|elements| prefetch_row(elements, at));
    }
}

/// How a modulation's rows go with the rows of a (B, L, D) tensor, and which of their columns an operation reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Modulation {
    pub(crate) rows: Rows,
    /// Whether every token has its own row; if not, an image's tokens share one, and its gradient sums over them.
    per_token: bool,
    /// Length of a row.
    row: usize,
    first: usize,
    width: usize,
}

impl Modulation {
    /// The columns of `source` that an operation reads, `width` in number, for (B, L) rows. `name` is for messages.
    pub(crate) fn new(
        op: &str,
        name: &str,
        source: &ModulationSource<'_>,
        (b, l): (usize, usize),
        width: usize,
    ) -> Result<Self> {
        let tensor = source.tensors()[0];
        let (row, first) = match source.first {
            None => (width, 0),
            Some(first) => (tensor.dims().last().copied().unwrap_or(0), first),
        };
        if first.checked_add(width).is_none_or(|end| end > row) {
            bail!(
                "{op}: expected {name} with {width} columns from column {first} on, got {:?}",
                tensor.shape()
            );
        }
        let per_token = match tensor.dims3() {
            Ok(dims) if dims == (b, 1, row) => false,
            Ok(dims) if dims == (b, l, row) => true,
            _ => bail!(
                "{op}: expected {name} of shape ({b}, 1, {row}) or ({b}, {l}, {row}), got {:?}",
                tensor.shape()
            ),
        };
        Ok(Self { rows: Rows::new(b, l), per_token, row, first, width })
    }

    /// The same columns of a tensor that has no others, as [`ModulationSource::single`] makes it.
    pub(crate) fn alone(self) -> Self {
        Self { row: self.width, first: 0, ..self }
    }

    /// The columns from `first` on, `width` of them.
    pub(crate) fn columns(self, first: usize, width: usize) -> Self {
        Self { first: self.first + first, width, ..self }
    }

    /// Number of columns.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Number of rows of the (B, L, D) tensor.
    pub(crate) fn count(&self) -> usize {
        self.rows.count()
    }

    /// The first of the operation's columns of row `source`.
    #[inline(always)]
    pub(crate) fn at(&self, source: usize) -> usize {
        source * self.row + self.first
    }

    /// The modulation row of a row.
    #[inline(always)]
    pub(crate) fn source(&self, row: usize) -> usize {
        if self.per_token { row } else { self.rows.image(row) }
    }

    /// Length of a row.
    pub(crate) fn row(&self) -> usize {
        self.row
    }

    /// The operation's columns in a row.
    pub(crate) fn range(&self) -> Range<usize> {
        self.first..self.first + self.width
    }

    /// Zeros for the sums that a backward pass keeps: per piece of an image, or per token.
    pub(crate) fn partials(&self) -> Vec<f32> {
        let count = if self.per_token { self.rows.count() } else { self.rows.pieces() };
        vec![0.0; count * self.row]
    }

    /// From the sums that a backward pass kept to the gradient of the modulation.
    pub(crate) fn gradient<T: Element>(&self, partials: Vec<f32>) -> Vec<T> {
        if self.per_token { T::collect(partials) } else { self.rows.sum_pieces(partials, self.row) }
    }

    /// Number of sums that a backward pass keeps for `task`.
    pub(crate) fn groups_of(&self, task: &Task) -> usize {
        if self.per_token { task.rows.len() } else { task.pieces.len() }
    }

    /// The rows of `task`, counted from its first, grouped by the modulation row that they share.
    #[inline(always)]
    pub(crate) fn groups(&self, task: &Task) -> impl Iterator<Item = (usize, Range<usize>)> {
        let source = self.source(task.rows.start);
        let count = self.groups_of(task);
        let each = task.rows.len() / count.max(1);
        (0..count).map(move |group| (source + group, group * each..(group + 1) * each))
    }
}
