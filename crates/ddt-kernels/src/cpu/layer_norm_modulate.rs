//! Forward and backward rows of [`crate::layer_norm_modulate`].

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::dispatch;
use super::element::Element;
use super::lanes::{fold, update};
use super::rows::{Rows, Task, cut};
use crate::modulation::Modulation;

/// What both passes read; all slices are contiguous, `x` (B, L, `width`).
pub(crate) struct Inputs<'a, T> {
    pub(crate) x: &'a [T],
    pub(crate) shift_scale: &'a [T],
    pub(crate) width: usize,
    pub(crate) modulation: Modulation,
    pub(crate) rows: Rows,
    pub(crate) eps: f32,
}

pub(crate) fn forward<T: Element>(inputs: &Inputs<'_, T>) -> Vec<T> {
    let mut out = vec![T::zero(); inputs.x.len()];
    let tasks = inputs.rows.tasks();
    let outs: Vec<_> = cut(&mut out, tasks.iter().map(|task| task.rows.len() * inputs.width)).collect();
    tasks.par_iter().zip(outs).for_each(|(task, out)| dispatch(Forward { inputs, task, out }));
    out
}

/// Gradients of `x` and `shift_scale`.
pub(crate) fn backward<T: Element>(inputs: &Inputs<'_, T>, grad: &[T]) -> (Vec<T>, Vec<T>) {
    let Inputs { width, modulation, rows, .. } = inputs;
    let tasks = rows.tasks();
    let mut grad_x = vec![T::zero(); inputs.x.len()];
    let mut grad_shift_scale = vec![0.0; modulation.partials(rows) * 2 * width];
    let outs: Vec<_> = cut(&mut grad_x, tasks.iter().map(|task| task.rows.len() * width))
        .zip(cut(&mut grad_shift_scale, tasks.iter().map(|task| modulation.partials_of(task) * 2 * width)))
        .collect();
    tasks.par_iter().zip(outs).for_each(|(task, (grad_x, grad_shift_scale))| {
        dispatch(Backward { inputs, grad, task, grad_x, grad_shift_scale });
    });
    (grad_x, modulation.gradient(rows, grad_shift_scale, 2 * width))
}

struct Forward<'a, T> {
    inputs: &'a Inputs<'a, T>,
    task: &'a Task,
    out: &'a mut [T],
}

impl<T: Element> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, task, out } = self;
        let width = inputs.width;
        let xs = &inputs.x[task.rows.start * width..];
        let one = simd.splat_f32s(1.0);
        let (mut x_row, mut out_row) = (T::scratch(width), T::scratch(width));
        let mut modulation_row = T::scratch(2 * width);
        for (source, rows) in inputs.modulation.groups(&inputs.rows, task) {
            let shift_scale = &inputs.shift_scale[source * 2 * width..][..2 * width];
            let (shift, scale) = T::view(shift_scale, &mut modulation_row).split_at(width);
            for row in rows {
                let x = T::view(&xs[row * width..][..width], &mut x_row);
                let out = &mut out[row * width..][..width];
                let (mean, rstd) = moments(simd, x, inputs.eps);
                let (mean, rstd) = (simd.splat_f32s(mean), simd.splat_f32s(rstd));
                update(
                    simd,
                    [T::view_mut(out, &mut out_row)],
                    [x, shift, scale],
                    #[inline(always)]
                    |_, [x, shift, scale]| {
                        let normed = simd.mul_f32s(simd.sub_f32s(x, mean), rstd);
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
    grad: &'a [T],
    task: &'a Task,
    grad_x: &'a mut [T],
    grad_shift_scale: &'a mut [f32],
}

impl<T: Element> WithSimd for Backward<'_, T> {
    type Output = ();

    // With h = (x - mean) rstd and g = grad (1 + scale):
    // grad_shift = grad, grad_scale = grad h, grad_x = rstd (g - mean(g) - h mean(g h)).
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, grad, task, grad_x, grad_shift_scale } = self;
        let width = inputs.width;
        let xs = &inputs.x[task.rows.start * width..];
        let grads = &grad[task.rows.start * width..];
        let one = simd.splat_f32s(1.0);
        let (mut x_row, mut grad_row, mut out_row) =
            (T::scratch(width), T::scratch(width), T::scratch(width));
        let mut modulation_row = T::scratch(2 * width);
        let groups = inputs.modulation.groups(&inputs.rows, task);
        for ((source, rows), sums) in groups.zip(grad_shift_scale.chunks_exact_mut(2 * width.max(1))) {
            let shift_scale = &inputs.shift_scale[source * 2 * width..][..2 * width];
            let scale = &T::view(shift_scale, &mut modulation_row)[width..];
            let (grad_shift, grad_scale) = sums.split_at_mut(width);
            for row in rows {
                let x = T::view(&xs[row * width..][..width], &mut x_row);
                let grad = T::view(&grads[row * width..][..width], &mut grad_row);
                let out = &mut grad_x[row * width..][..width];
                let (mean, rstd) = moments(simd, x, inputs.eps);
                let (mean, rstd) = (simd.splat_f32s(mean), simd.splat_f32s(rstd));
                let [sum, dot] = fold(
                    simd,
                    [x, grad, scale],
                    #[inline(always)]
                    |[sum, dot], [x, grad, scale]| {
                        let g = simd.mul_f32s(grad, simd.add_f32s(one, scale));
                        let h = simd.mul_f32s(simd.sub_f32s(x, mean), rstd);
                        [simd.add_f32s(sum, g), simd.mul_add_e_f32s(g, h, dot)]
                    },
                );
                let mean_g = simd.splat_f32s(sum / width as f32);
                let pull = simd.splat_f32s(-dot / width as f32);
                update(
                    simd,
                    [T::view_mut(out, &mut out_row), grad_shift, grad_scale],
                    [x, grad, scale],
                    #[inline(always)]
                    |[_, grad_shift, grad_scale], [x, grad, scale]| {
                        let g = simd.mul_f32s(grad, simd.add_f32s(one, scale));
                        let h = simd.mul_f32s(simd.sub_f32s(x, mean), rstd);
                        let grad_h = simd.mul_add_e_f32s(h, pull, simd.sub_f32s(g, mean_g));
                        [
                            simd.mul_f32s(rstd, grad_h),
                            simd.add_f32s(grad, grad_shift),
                            simd.mul_add_e_f32s(grad, h, grad_scale),
                        ]
                    },
                );
                T::commit(out, &out_row);
            }
        }
    }
}

/// The mean, and `1 / sqrt(variance + eps)` from a second pass: a one-pass variance cancels.
#[inline(always)]
fn moments<S: Simd>(simd: S, x: &[f32], eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let [sum] = fold(
        simd,
        [x],
        #[inline(always)]
        |[sum], [x]| [simd.add_f32s(sum, x)],
    );
    let mean = sum / count;
    let squares = squared_distance(simd, x, mean);
    (mean, 1.0 / (squares / count + eps).sqrt())
}

/// `sum((x - mean)^2)`.
#[inline(always)]
fn squared_distance<S: Simd>(simd: S, x: &[f32], mean: f32) -> f32 {
    let centre = simd.splat_f32s(mean);
    let whole = x.len() - x.len() % S::F32_LANES;
    let [squares] = fold(
        simd,
        [&x[..whole]],
        #[inline(always)]
        |[squares], [x]| {
            let distance = simd.sub_f32s(x, centre);
            [simd.mul_add_e_f32s(distance, distance, squares)]
        },
    );
    // The zeros that pad a partial lane group are not at the mean, so the last few are added singly.
    x[whole..].iter().fold(squares, |squares, x| squares + (x - mean) * (x - mean))
}
