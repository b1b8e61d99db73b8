//! Forward and backward rows of [`crate::add_silu`].

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::dispatch;
use super::element::Element;
use super::exp::{silu, silu_and_slope};
use super::lanes::update;
use super::rows::{Rows, Task, cut};
use crate::modulation::Modulation;

/// What both passes read; all slices are contiguous, `x` (B, L, `width`).
pub(crate) struct Inputs<'a, T> {
    pub(crate) x: &'a [T],
    pub(crate) t: &'a [T],
    pub(crate) width: usize,
    pub(crate) modulation: Modulation,
    pub(crate) rows: Rows,
}

pub(crate) fn forward<T: Element>(inputs: &Inputs<'_, T>) -> Vec<T> {
    let mut out = vec![T::zero(); inputs.x.len()];
    let tasks = inputs.rows.tasks();
    let outs: Vec<_> = cut(&mut out, tasks.iter().map(|task| task.rows.len() * inputs.width)).collect();
    tasks.par_iter().zip(outs).for_each(|(task, out)| dispatch(Forward { inputs, task, out }));
    out
}

/// Gradients of `x` and `t`.
pub(crate) fn backward<T: Element>(inputs: &Inputs<'_, T>, grad: &[T]) -> (Vec<T>, Vec<T>) {
    let Inputs { width, modulation, rows, .. } = inputs;
    let tasks = rows.tasks();
    let mut grad_x = vec![T::zero(); inputs.x.len()];
    let mut grad_t = vec![0.0; modulation.partials(rows) * width];
    let outs: Vec<_> = cut(&mut grad_x, tasks.iter().map(|task| task.rows.len() * width))
        .zip(cut(&mut grad_t, tasks.iter().map(|task| modulation.partials_of(task) * width)))
        .collect();
    tasks.par_iter().zip(outs).for_each(|(task, (grad_x, grad_t))| {
        dispatch(Backward { inputs, grad, task, grad_x, grad_t });
    });
    (grad_x, modulation.gradient(rows, grad_t, *width))
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
        let (mut x_row, mut t_row, mut out_row) = (T::scratch(width), T::scratch(width), T::scratch(width));
        for (source, rows) in inputs.modulation.groups(&inputs.rows, task) {
            let t = T::view(&inputs.t[source * width..][..width], &mut t_row);
            for row in rows {
                let x = T::view(&xs[row * width..][..width], &mut x_row);
                let out = &mut out[row * width..][..width];
                update(
                    simd,
                    [T::view_mut(out, &mut out_row)],
                    [x, t],
                    #[inline(always)]
                    |_, [x, t]| [silu(simd, simd.add_f32s(x, t))],
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
    grad_t: &'a mut [f32],
}

impl<T: Element> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, grad, task, grad_x, grad_t } = self;
        let width = inputs.width;
        let first = task.rows.start * width;
        let (xs, grads) = (&inputs.x[first..], &grad[first..]);
        let (mut x_row, mut t_row, mut out_row) = (T::scratch(width), T::scratch(width), T::scratch(width));
        let mut grad_row = T::scratch(width);
        let groups = inputs.modulation.groups(&inputs.rows, task);
        for ((source, rows), sums) in groups.zip(grad_t.chunks_exact_mut(width.max(1))) {
            let t = T::view(&inputs.t[source * width..][..width], &mut t_row);
            for row in rows {
                let x = T::view(&xs[row * width..][..width], &mut x_row);
                let grad = T::view(&grads[row * width..][..width], &mut grad_row);
                let out = &mut grad_x[row * width..][..width];
                update(
                    simd,
                    [T::view_mut(out, &mut out_row), &mut *sums],
                    [x, t, grad],
                    #[inline(always)]
                    |[_, sum], [x, t, grad]| {
                        let slope = silu_and_slope(simd, simd.add_f32s(x, t)).1;
                        let grad = simd.mul_f32s(grad, slope);
                        [grad, simd.add_f32s(sum, grad)]
                    },
                );
                T::commit(out, &out_row);
            }
        }
    }
}
