//! Forward and backward rows of [`crate::rms_norm_modulate`].

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::dispatch;
use super::element::Element;
use super::fresh::{Fill, Fresh};
use super::lanes::{fold, update};
use super::rows::{Rows, Task, cut, sum_rows};
use crate::modulation::{Columns, Modulation};

/// What both passes read; all slices are contiguous, `x` (B, L, D). `columns` are those of `shift_scale`.
pub(crate) struct Inputs<'a, T> {
    pub(crate) x: &'a [T],
    pub(crate) weight: &'a [T],
    pub(crate) shift_scale: &'a [T],
    pub(crate) columns: Columns,
    pub(crate) modulation: Modulation,
    pub(crate) rows: Rows,
    pub(crate) eps: f32,
}

/// Gradients of `x`, `weight` and `shift_scale`.
pub(crate) struct Gradients<T> {
    pub(crate) x: Vec<T>,
    pub(crate) weight: Vec<T>,
    pub(crate) shift_scale: Vec<T>,
}

pub(crate) fn forward<T: Element>(inputs: &Inputs<'_, T>) -> Vec<T> {
    let mut out = Fresh::new(inputs.x.len());
    let tasks = inputs.rows.tasks();
    let lens = tasks.iter().map(|task| task.rows.len() * inputs.weight.len());
    fill(inputs, &tasks, out.parts(lens).collect());
    out.finish()
}

/// [`forward`] over a buffer.
pub(super) fn forward_into<T: Element>(inputs: &Inputs<'_, T>, out: &mut [T]) {
    let tasks = inputs.rows.tasks();
    let lens = tasks.iter().map(|task| task.rows.len() * inputs.weight.len());
    fill(inputs, &tasks, cut(out, lens).collect());
}

fn fill<'a, T: Element>(inputs: &Inputs<'_, T>, tasks: &[Task], outs: Vec<impl Fill<'a, T>>) {
    let mut scratch = T::scratch(inputs.weight.len());
    let weight = T::view(inputs.weight, &mut scratch);
    tasks.par_iter().zip(outs).for_each(|(task, out)| {
        let out = out.open();
        dispatch(Forward { inputs, weight, task, out });
    });
}

pub(crate) fn backward<T: Element>(inputs: &Inputs<'_, T>, grad: &[T]) -> Gradients<T> {
    let Inputs { rows, modulation, columns, .. } = inputs;
    let mut partial = vec![0.0; modulation.partials(rows) * columns.row];
    let (x, weight) = backward_into(inputs, grad, &mut partial);
    Gradients { x, weight, shift_scale: modulation.gradient(rows, partial, columns.row) }
}

/// Gradients of `x` and `weight`; adds that of `shift_scale` to its columns of `grad_shift_scale`, rows of
/// the sums that [`Modulation::gradient`] takes.
pub(super) fn backward_into<T: Element>(
    inputs: &Inputs<'_, T>,
    grad: &[T],
    grad_shift_scale: &mut [f32],
) -> (Vec<T>, Vec<T>) {
    let width = inputs.weight.len();
    let Inputs { rows, modulation, columns, .. } = inputs;
    let mut scratch = T::scratch(width);
    let weight = T::view(inputs.weight, &mut scratch);
    let tasks = rows.tasks();
    let mut grad_x = Fresh::new(inputs.x.len());
    let mut grad_weight = vec![0.0; tasks.len() * width];
    let outs: Vec<_> = grad_x
        .parts(tasks.iter().map(|task| task.rows.len() * width))
        .zip(cut(&mut grad_weight, tasks.iter().map(|_| width)))
        .zip(cut(grad_shift_scale, tasks.iter().map(|task| modulation.partials_of(task) * columns.row)))
        .collect();
    tasks.par_iter().zip(outs).for_each(|(task, ((grad_x, grad_weight), grad_shift_scale))| {
        let grad_x = grad_x.open();
        dispatch(Backward { inputs, weight, grad, task, grad_x, grad_weight, grad_shift_scale });
    });
    (grad_x.finish(), sum_rows(&grad_weight, width))
}

struct Forward<'a, T> {
    inputs: &'a Inputs<'a, T>,
    weight: &'a [f32],
    task: &'a Task,
    out: &'a mut [T],
}

impl<T: Element> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, weight, task, out } = self;
        let width = weight.len();
        let xs = &inputs.x[task.rows.start * width..];
        let one = simd.splat_f32s(1.0);
        let (mut x_row, mut out_row) = (T::scratch(width), T::scratch(width));
        let mut modulation_row = T::scratch(2 * width);
        for (source, rows) in inputs.modulation.groups(&inputs.rows, task) {
            let shift_scale = inputs.columns.of(inputs.shift_scale, source, 2 * width);
            let (shift, scale) = T::view(shift_scale, &mut modulation_row).split_at(width);
            for row in rows {
                let x = T::view(&xs[row * width..][..width], &mut x_row);
                let out = &mut out[row * width..][..width];
                let rstd = simd.splat_f32s(inverse_rms(simd, x, inputs.eps));
                update(
                    simd,
                    [T::view_mut(out, &mut out_row)],
                    [x, weight, shift, scale],
                    #[inline(always)]
                    |_, [x, weight, shift, scale]| {
                        let normed = simd.mul_f32s(simd.mul_f32s(x, rstd), weight);
                        [simd.mul_add_e_f32s(normed, simd.add_f32s(one, scale), shift)]
                    },
                );
                T::commit(out, &out_row);
            }
        }
    }
}

struct Backward<'a, T> {
    inputs: &'a Inputs<'a, T>,
    weight: &'a [f32],
    grad: &'a [T],
    task: &'a Task,
    grad_x: &'a mut [T],
    grad_weight: &'a mut [f32],
    grad_shift_scale: &'a mut [f32],
}

impl<T: Element> WithSimd for Backward<'_, T> {
    type Output = ();

    // With h = x rstd, n = h w and g = grad (1 + scale):
    // grad_shift = grad, grad_scale = grad n, grad_w = g h, grad_x = rstd (g w - h mean(g w h)).
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, weight, grad, task, grad_x, grad_weight, grad_shift_scale } = self;
        let width = weight.len();
        let xs = &inputs.x[task.rows.start * width..];
        let grads = &grad[task.rows.start * width..];
        let one = simd.splat_f32s(1.0);
        let (mut x_row, mut grad_row, mut out_row) =
            (T::scratch(width), T::scratch(width), T::scratch(width));
        let mut modulation_row = T::scratch(2 * width);
        let groups = inputs.modulation.groups(&inputs.rows, task);
        let columns = inputs.columns;
        for ((source, rows), sums) in groups.zip(grad_shift_scale.chunks_exact_mut(columns.row.max(1))) {
            let shift_scale = inputs.columns.of(inputs.shift_scale, source, 2 * width);
            let scale = &T::view(shift_scale, &mut modulation_row)[width..];
            let (grad_shift, grad_scale) = sums[columns.first..][..2 * width].split_at_mut(width);
            for row in rows {
                let x = T::view(&xs[row * width..][..width], &mut x_row);
                let grad = T::view(&grads[row * width..][..width], &mut grad_row);
                let out = &mut grad_x[row * width..][..width];
                let [squares, dot] = fold(
                    simd,
                    [x, grad, weight, scale],
                    #[inline(always)]
                    |[squares, dot], [x, grad, weight, scale]| {
                        let gw = simd.mul_f32s(simd.mul_f32s(grad, simd.add_f32s(one, scale)), weight);
                        [simd.mul_add_e_f32s(x, x, squares), simd.mul_add_e_f32s(gw, x, dot)]
                    },
                );
                let inverse = 1.0 / width as f32;
                let rstd = 1.0 / (squares * inverse + inputs.eps).sqrt();
                let pull = simd.splat_f32s(-rstd * rstd * dot * inverse);
                let rstd = simd.splat_f32s(rstd);
                update(
                    simd,
                    [T::view_mut(out, &mut out_row), grad_weight, grad_shift, grad_scale],
                    [x, grad, weight, scale],
                    #[inline(always)]
                    |[_, grad_weight, grad_shift, grad_scale], [x, grad, weight, scale]| {
                        let g = simd.mul_f32s(grad, simd.add_f32s(one, scale));
                        let h = simd.mul_f32s(x, rstd);
                        let grad_h = simd.mul_add_e_f32s(x, pull, simd.mul_f32s(g, weight));
                        [
                            simd.mul_f32s(rstd, grad_h),
                            simd.mul_add_e_f32s(g, h, grad_weight),
                            simd.add_f32s(grad, grad_shift),
                            simd.mul_add_e_f32s(grad, simd.mul_f32s(h, weight), grad_scale),
                        ]
                    },
                );
                T::commit(out, &out_row);
            }
        }
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(super) fn inverse_rms<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let [squares] = fold(
        simd,
        [x],
        #[inline(always)]
        |[squares], [x]| [simd.mul_add_e_f32s(x, x, squares)],
    );
    1.0 / (squares / x.len() as f32 + eps).sqrt()
}
