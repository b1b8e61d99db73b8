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
/// On the CPU a sum is computed in f32 where the operation reads it and never written to memory; no tensor may depend on
/// a variable then. On other devices it is a tensor of its own.
/// It serves extrapolation: a forecast of a modulation from earlier ones is such a sum.
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

    /// The sum as one tensor.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let [(first, weight), others @ ..] = self.terms;
        if !self.is_sum() {
            return Ok(first.clone());
        }
        let mut sum = (first * f64::from(weight))?;
        for (tensor, weight) in &others[..self.count - 1] {
            sum = (sum + (*tensor * f64::from(*weight))?)?;
        }
        Ok(sum)
    }

    fn is_sum(&self) -> bool {
        self.count > 1 || self.terms[0].1 != 1.0
    }

    /// The source as one tensor that has only `columns`, unless it is a sum that is computed where it is read.
    pub(crate) fn single(&self, columns: &Modulation) -> Result<Option<Tensor>> {
        if self.is_sum() && self.terms[0].0.device().is_cpu() {
            return Ok(None);
        }
        self.to_tensor()?.narrow(2, columns.first, columns.width).map(Some)
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
        self.widened(self.width)
    }

    /// Rows of `width` columns that go with the same rows.
    pub(crate) fn widened(self, width: usize) -> Self {
        Self { row: width, first: 0, width, ..self }
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

    /// The rows of a view that has the operation's columns only.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn rows_of<'a, T: crate::cuda::Float>(
        &self,
        view: &'a crate::gpu::View<T>,
    ) -> crate::cuda::Rows<'a, T> {
        view.rows(if self.per_token { 1 } else { self.rows.len() })
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};

    use super::*;
    use crate::testing::{
        EPS, block_inputs, error, packed_weights, plain_layer_norm, plain_modulate, plain_rms_norm, random,
        refused, rope,
    };
    use crate::{gate_residual, layer_norm_modulate, packed_block, rms_norm_modulate};

    /// Weights of a forecast by two and by three terms, and of one scaled term.
    const WEIGHTS: [&[f64]; 3] = [&[1.7, -0.7], &[2.5, -2.25, 0.75], &[0.3]];

    /// Tensors in `dtype`, and their sum in f64.
    fn terms(weights: &[f64], shape: &[usize], dtype: DType) -> Result<(Vec<Tensor>, Tensor)> {
        let new = |seed| random(20 + seed as u64, shape)?.to_dtype(dtype);
        let tensors = (0..weights.len()).map(new).collect::<Result<Vec<_>>>()?;
        let mut sum = Tensor::zeros(shape, DType::F64, tensors[0].device())?;
        for (tensor, weight) in tensors.iter().zip(weights) {
            sum = (sum + (tensor.to_dtype(DType::F64)? * *weight)?)?;
        }
        Ok((tensors, sum))
    }

    fn source<'a>(tensors: &'a [Tensor], weights: &[f64]) -> Result<ModulationSource<'a>> {
        ModulationSource::sum(&tensors.iter().zip(weights.iter().copied()).collect::<Vec<_>>())
    }

    #[test]
    fn norms_and_gates_read_a_sum_as_if_it_were_a_tensor() -> Result<()> {
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 4e-3), (DType::F16, 5e-4)] {
            for (b, l, d) in [(2, 5, 24), (3, 70, 33), (1, 1, 16)] {
                for (rows, weights) in [1, l].into_iter().flat_map(|rows| WEIGHTS.map(|it| (rows, it))) {
                    let new = |seed, shape: &[usize]| random(seed, shape)?.to_dtype(dtype);
                    let (x, y, weight) = (new(1, &[b, l, d])?, new(2, &[b, l, d])?, new(3, &[d])?);
                    let exact = |it: &Tensor| it.to_dtype(DType::F64);
                    let (tensors, sum) = terms(weights, &[b, rows, 2 * d], dtype)?;
                    let shift_scale = source(&tensors, weights)?;

                    let got = rms_norm_modulate(&x, &weight, shift_scale, EPS)?;
                    let normed = plain_rms_norm(&exact(&x)?, &exact(&weight)?)?;
                    let found = error(&got, &plain_modulate(&normed, &sum)?)?;
                    assert!(got.dtype() == dtype && found < tolerance, "{dtype:?} {weights:?}: {found:e}");

                    let got = layer_norm_modulate(&x, shift_scale, EPS)?;
                    let found = error(&got, &plain_modulate(&plain_layer_norm(&exact(&x)?)?, &sum)?)?;
                    assert!(got.dtype() == dtype && found < tolerance, "{dtype:?} {weights:?}: {found:e}");

                    // The gate is the columns from 3 on.
                    let got = gate_residual(&x, shift_scale.from_column(3), &y)?;
                    let gate = sum.narrow(2, 3, d)?;
                    let found = error(&got, &(exact(&x)? + gate.broadcast_mul(&exact(&y)?)?)?)?;
                    assert!(got.dtype() == dtype && found < tolerance, "{dtype:?} {weights:?}: {found:e}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_block_reads_a_sum_as_if_it_were_a_tensor() -> Result<()> {
        let ((b, l), (n, k), f) = ((2, 16), (2, 16), 85);
        let rope = rope(l, k)?;
        // In bf16 the tensor that holds the sum is rounded, the sum itself is not.
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 1.5e-2)] {
            for (rows, weights) in [1, l].into_iter().flat_map(|rows| WEIGHTS.map(|it| (rows, it))) {
                let x = block_inputs([b, l], [n, k], f, rows)?;
                let x = x.iter().map(|x| x.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
                let (tensors, sum) = terms(weights, &[b, rows, 7 * n * k], dtype)?;
                let columns = source(&tensors, weights)?.from_column(n * k);
                let got = packed_block(&x[0], columns, &packed_weights(&x)?, &rope, n, EPS)?;
                let sum = sum.narrow(2, n * k, 6 * n * k)?.to_dtype(dtype)?;
                let want = packed_block(&x[0], &sum, &packed_weights(&x)?, &rope, n, EPS)?;
                let found = error(&got, &want)?;
                assert!(found < tolerance, "{dtype:?} {weights:?} {rows} rows: {found:e}");
            }
        }
        Ok(())
    }

    #[test]
    fn one_tensor_with_weight_one_has_the_same_bits_and_a_gradient() -> Result<()> {
        let (x, gate) = (random(1, &[2, 3, 8])?, Var::from_tensor(&random(2, &[2, 3, 20])?)?);
        let columns = ModulationSource::sum(&[(gate.as_tensor(), 1.0)])?.from_column(5);
        let got = gate_residual(&x, columns, &x)?;
        let want = gate_residual(&x, &gate.narrow(2, 5, 8)?, &x)?;
        assert_eq!(got.to_vec3::<f32>()?, want.to_vec3::<f32>()?);
        let grads = got.sum_all()?.backward()?;
        let Some(grad) = grads.get(&gate) else { bail!("a gate without a gradient") };
        assert_eq!(error(&grad.narrow(2, 5, 8)?, &x)?, 0.0);
        Ok(())
    }

    #[test]
    fn wrong_sums_are_refused() -> Result<()> {
        let (x, gate) = (random(1, &[2, 3, 8])?, random(2, &[2, 1, 8])?);
        let sum = |terms: &[(&Tensor, f64)]| ModulationSource::sum(terms).map(|_| gate.clone());
        refused(sum(&[]), "expected 1 to 3 terms, got 0");
        refused(sum(&[(&gate, 1.0); 4]), "expected 1 to 3 terms, got 4");
        refused(sum(&[(&gate, 1.0), (&x, 1.0)]), "expected another term of shape [2, 1, 8], got [2, 3, 8]");
        refused(sum(&[(&gate, 1.0), (&gate.to_dtype(DType::F16)?, 1.0)]), "F32, got F16");
        let variable = Var::from_tensor(&gate)?;
        let source = ModulationSource::sum(&[(&gate, 2.0), (variable.as_tensor(), -1.0)])?;
        refused(gate_residual(&x, source, &x), "depend on no variable");
        let source = ModulationSource::sum(&[(&gate, 2.0), (&gate, -1.0)])?;
        refused(gate_residual(&x, source.from_column(1), &x), "with 8 columns from column 1 on");
        refused(layer_norm_modulate(&x, source, EPS), "expected shift_scale of shape (2, 1, 16)");
        let weights = packed_weights(&block_inputs([2, 3], [1, 8], 24, 1)?)?;
        let rope = rope(3, 8)?;
        refused(packed_block(&x, source, &weights, &rope, 1, EPS), "expected modulation of shape (2, 1, 48)");
        Ok(())
    }
}
