//! Passes over the rows of modulated operations: forward and backward, in tasks, in f32.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::{bf16, f16};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::buffers::{Fill, Fresh, cut};
use crate::cpu::dispatch;
use crate::cpu::element::{Element, commit, views, views_mut};
use crate::cpu::rows::Task;
use crate::modulation::{Modulation, ModulationSource, Values};
use crate::op::{check_alike, with_slices};

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

/// The inputs of a pass over rows: `N` tensors (B, L, `width`) and a modulation, contiguous.
#[derive(Clone, Copy)]
pub(crate) struct RowInputs<'a, T, const N: usize> {
    pub(crate) inputs: [&'a [T]; N],
    pub(crate) width: usize,
    pub(crate) values: Values<'a, T>,
    /// The columns of `values`.
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
        let row = self.modulation.row();
        let tasks = self.modulation.rows.tasks();
        let mut out = Fresh::new(self.modulation.count() * self.width);
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
        let mut modulation_scratch = values.scratch(modulation.width());
        let inputs = inputs.map(|it| &it[task.rows.start * width..]);
        for (source, rows) in modulation.groups(task) {
            let values = values.row(simd, &modulation, source, &mut modulation_scratch);
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
        let mut modulation_scratch = values.scratch(modulation.width());
        let inputs = inputs.map(|it| &it[task.rows.start * width..]);
        let groups = modulation.groups(task).zip(partials.chunks_exact_mut(modulation.row().max(1)));
        for ((source, rows), partials) in groups {
            let values = values.row(simd, &modulation, source, &mut modulation_scratch);
            let grad_modulation = &mut partials[modulation.range()];
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

/// The result of `op` for every row of `inputs`, (B, L, D), with a modulation that is a weighted sum. `named` are all
/// tensors that the operation reads beside the modulation.
pub(crate) fn map_sum<const N: usize>(
    name: &str,
    op: &impl RowOp<N>,
    named: &[(&str, &Tensor)],
    inputs: [&Tensor; N],
    source: &ModulationSource<'_>,
    modulation: Modulation,
) -> Result<Tensor> {
    let terms = source.tensors().map(|it| ("modulation", it));
    let all = [named, &terms].concat();
    check_alike(name, &all)?;
    if let Some((variable, _)) = all.iter().find(|(_, it)| it.track_op()) {
        bail!(
            "{name}: expected tensors that depend on no variable beside a sum of modulations, got such {variable}"
        );
    }
    match inputs[0].dtype() {
        DType::BF16 => map_sum_of::<bf16, N>(op, inputs, source, modulation),
        DType::F16 => map_sum_of::<f16, N>(op, inputs, source, modulation),
        _ => map_sum_of::<f32, N>(op, inputs, source, modulation),
    }
}

fn map_sum_of<T: Element, const N: usize>(
    op: &impl RowOp<N>,
    inputs: [&Tensor; N],
    source: &ModulationSource<'_>,
    modulation: Modulation,
) -> Result<Tensor> {
    let (shape, width) = (inputs[0].shape(), inputs[0].dims().last().copied().unwrap_or(0));
    let out = with_slices(inputs, |inputs| {
        with_slices(source.tensors(), |elements| {
            RowInputs { inputs, width, values: source.values::<T>(elements), modulation }.map(op)
        })
    })??;
    Tensor::from_vec(out, shape, &Device::Cpu)
}
