//! Modulations (shift and scale, gate, addend), one row per image or per token, and the passes over rows that use one.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::buffers::{Fill, Fresh, cut};
use crate::cpu::dispatch;
use crate::cpu::element::{Element, commit, views, views_mut};
use crate::cpu::rows::{Rows, Task};

/// How a modulation's rows go with the rows of a (B, L, D) tensor, and which of their columns an operation reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Modulation {
    rows: Rows,
    /// Whether every token has its own row; if not, an image's tokens share one, and its gradient sums over them.
    per_token: bool,
    /// Length of a row.
    row: usize,
    first: usize,
    width: usize,
}

impl Modulation {
    /// All columns of `tensor`, which must be (B, 1, `width`) or (B, L, `width`).
    pub(crate) fn new(
        op: &str,
        name: &str,
        tensor: &Tensor,
        (b, l): (usize, usize),
        width: usize,
    ) -> Result<Self> {
        let per_token = match tensor.dims3() {
            Ok(dims) if dims == (b, 1, width) => false,
            Ok(dims) if dims == (b, l, width) => true,
            _ => bail!(
                "{op}: expected {name} of shape ({b}, 1, {width}) or ({b}, {l}, {width}), got {:?}",
                tensor.shape()
            ),
        };
        Ok(Self { rows: Rows::new(b, l), per_token, row: width, first: 0, width })
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

    /// The operation's columns of row `source` of `values`.
    #[inline(always)]
    pub(crate) fn of<'a, T>(&self, values: &'a [T], source: usize) -> &'a [T] {
        &values[self.at(source)..][..self.width]
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
    fn groups_of(&self, task: &Task) -> usize {
        if self.per_token { task.rows.len() } else { task.pieces.len() }
    }

    /// The rows of `task`, counted from its first, grouped by the modulation row that they share.
    #[inline(always)]
    fn groups(&self, task: &Task) -> impl Iterator<Item = (usize, Range<usize>)> {
        let source = self.source(task.rows.start);
        let count = self.groups_of(task);
        let each = task.rows.len() / count.max(1);
        (0..count).map(move |group| (source + group, group * each..(group + 1) * each))
    }
}

/// A row of a modulated operation: `N` rows and the modulation's to one row, all in f32.
///
/// Implementations must be marked `#[inline(always)]`.
pub(crate) trait RowOp<const N: usize>: Sync {
    fn row<S: Simd>(&self, simd: S, inputs: [&[f32]; N], modulation: &[f32], out: &mut [f32]);
}

/// The gradient of a row of a modulated operation, from `N` rows, the gradient of the result among them.
///
/// Implementations must be marked `#[inline(always)]`.
pub(crate) trait RowGradient<const N: usize>: Sync {
    /// Writes the gradient of a row to `out`, and adds to those of the modulation and of the operation's weight.
    fn row<S: Simd>(
        &self,
        simd: S,
        inputs: [&[f32]; N],
        modulation: &[f32],
        out: &mut [f32],
        grad_modulation: &mut [f32],
        grad_weight: &mut [f32],
    );
}

/// What a pass over rows reads: `N` tensors (B, L, `width`) and a modulation, contiguous.
#[derive(Clone, Copy)]
pub(crate) struct RowInputs<'a, T, const N: usize> {
    pub(crate) inputs: [&'a [T]; N],
    pub(crate) width: usize,
    pub(crate) values: &'a [T],
    pub(crate) modulation: Modulation,
}

impl<'a, T: Element, const N: usize> RowInputs<'a, T, N> {
    /// The result of `op` for every row.
    pub(crate) fn map(&self, op: &impl RowOp<N>) -> Vec<T> {
        let mut out = Fresh::new(self.modulation.count() * self.width);
        let tasks = self.modulation.rows.tasks();
        self.run(op, &tasks, out.parts(self.lens(&tasks)).collect());
        out.finish()
    }

    /// [`map`](Self::map) over a buffer.
    pub(crate) fn map_into(&self, op: &impl RowOp<N>, out: &mut [T]) {
        let tasks = self.modulation.rows.tasks();
        self.run(op, &tasks, cut(out, self.lens(&tasks)).collect());
    }

    fn lens(&self, tasks: &[Task]) -> impl Iterator<Item = usize> {
        let width = self.width;
        tasks.iter().map(move |task| task.rows.len() * width)
    }

    fn run<'b>(&self, op: &impl RowOp<N>, tasks: &[Task], outs: Vec<impl Fill<'b, T>>) {
        tasks.par_iter().zip(outs).for_each(|(task, out)| {
            let outs = [out.open()];
            dispatch(Forward { inputs: self, op, task, outs });
        });
    }

    /// The gradient of a row for every row, and the sums of that of a weight of `weight` elements, in order. Adds the
    /// gradient of the modulation to its columns of `partials`, which [`Modulation::partials`] made.
    pub(crate) fn gradients(
        &self,
        op: &impl RowGradient<N>,
        weight: usize,
        partials: &mut [f32],
    ) -> (Vec<T>, Vec<f32>) {
        let Modulation { row, ref rows, .. } = self.modulation;
        let tasks = rows.tasks();
        let mut out = Fresh::new(rows.count() * self.width);
        let mut weights = vec![0.0; tasks.len() * weight];
        let outs: Vec<_> = out
            .parts(self.lens(&tasks))
            .zip(cut(&mut weights, tasks.iter().map(|_| weight)))
            .zip(cut(partials, tasks.iter().map(|task| self.modulation.groups_of(task) * row)))
            .collect();
        tasks.par_iter().zip(outs).for_each(|(task, ((out, grad_weight), partials))| {
            let outs = [out.open()];
            dispatch(Backward { inputs: self, op, task, outs, grad_weight, partials });
        });
        (out.finish(), weights)
    }
}

struct Forward<'a, 'b, T, Op, const N: usize> {
    inputs: &'a RowInputs<'b, T, N>,
    op: &'a Op,
    task: &'a Task,
    outs: [&'a mut [T]; 1],
}

impl<T: Element, Op: RowOp<N>, const N: usize> WithSimd for Forward<'_, '_, T, Op, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs: &RowInputs { inputs, width, values, modulation }, op, task, mut outs } = self;
        let mut scratch: [Vec<f32>; N] = std::array::from_fn(|_| T::scratch(width));
        let mut out_scratch = [T::scratch(width)];
        let mut modulation_scratch = T::scratch(modulation.width);
        let inputs = inputs.map(|it| &it[task.rows.start * width..]);
        for (source, rows) in modulation.groups(task) {
            let values = T::view(modulation.of(values, source), &mut modulation_scratch);
            for row in rows {
                let range = row * width..(row + 1) * width;
                let inputs = views(inputs, range.clone(), &mut scratch);
                let [out] = views_mut(&mut outs, range.clone(), &mut out_scratch);
                op.row(simd, inputs, values, out);
                commit(&mut outs, range, &out_scratch);
            }
        }
    }
}

struct Backward<'a, 'b, T, Op, const N: usize> {
    inputs: &'a RowInputs<'b, T, N>,
    op: &'a Op,
    task: &'a Task,
    outs: [&'a mut [T]; 1],
    grad_weight: &'a mut [f32],
    partials: &'a mut [f32],
}

impl<T: Element, Op: RowGradient<N>, const N: usize> WithSimd for Backward<'_, '_, T, Op, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, op, task, mut outs, grad_weight, partials } = self;
        let &RowInputs { inputs, width, values, modulation } = inputs;
        let mut scratch: [Vec<f32>; N] = std::array::from_fn(|_| T::scratch(width));
        let mut out_scratch = [T::scratch(width)];
        let mut modulation_scratch = T::scratch(modulation.width);
        let inputs = inputs.map(|it| &it[task.rows.start * width..]);
        let groups = modulation.groups(task).zip(partials.chunks_exact_mut(modulation.row.max(1)));
        for ((source, rows), partials) in groups {
            let values = T::view(modulation.of(values, source), &mut modulation_scratch);
            let grad_modulation = &mut partials[modulation.first..][..modulation.width];
            for row in rows {
                let range = row * width..(row + 1) * width;
                let inputs = views(inputs, range.clone(), &mut scratch);
                let [out] = views_mut(&mut outs, range.clone(), &mut out_scratch);
                op.row(simd, inputs, values, out, grad_modulation, grad_weight);
                commit(&mut outs, range, &out_scratch);
            }
        }
    }
}
