//! Forward and backward rows of [`crate::gate_residual`].

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::dispatch;
use super::element::Element;
use super::fresh::{Fill, Fresh};
use super::lanes::update;
use super::rows::{Rows, Task, cut};
use crate::modulation::{Columns, Modulation};

/// How the gate's rows go with those of a (B, L, `width`) tensor.
pub(crate) struct Plan {
    pub(crate) width: usize,
    /// Those of the gate.
    pub(crate) columns: Columns,
    pub(crate) modulation: Modulation,
    pub(crate) rows: Rows,
}

pub(crate) fn forward<T: Element>(plan: &Plan, x: &[T], gate: &[T], y: &[T]) -> Vec<T> {
    let mut out = Fresh::new(x.len());
    let tasks = plan.rows.tasks();
    let outs: Vec<_> = out.parts(tasks.iter().map(|task| task.rows.len() * plan.width)).collect();
    tasks.par_iter().zip(outs).for_each(|(task, out)| {
        let out = out.open();
        dispatch(Forward { plan, task, x, gate, y, out });
    });
    out.finish()
}

/// Gradients of `gate` and `y`; that of `x` is `grad` itself.
pub(crate) fn backward<T: Element>(plan: &Plan, gate: &[T], y: &[T], grad: &[T]) -> (Vec<T>, Vec<T>) {
    let Plan { modulation, rows, columns, .. } = plan;
    let mut partial = vec![0.0; modulation.partials(rows) * columns.row];
    let grad_y = backward_into(plan, gate, y, grad, &mut partial);
    (modulation.gradient(rows, partial, columns.row), grad_y)
}

/// The gradient of `y`; adds that of `gate` to its columns of `grad_gate`, rows of the sums that
/// [`Modulation::gradient`] takes.
pub(super) fn backward_into<T: Element>(
    plan: &Plan,
    gate: &[T],
    y: &[T],
    grad: &[T],
    grad_gate: &mut [f32],
) -> Vec<T> {
    let Plan { width, modulation, rows, columns } = plan;
    let tasks = rows.tasks();
    let mut grad_y = Fresh::new(y.len());
    let outs: Vec<_> = grad_y
        .parts(tasks.iter().map(|task| task.rows.len() * width))
        .zip(cut(grad_gate, tasks.iter().map(|task| modulation.partials_of(task) * columns.row)))
        .collect();
    tasks.par_iter().zip(outs).for_each(|(task, (grad_y, grad_gate))| {
        let grad_y = grad_y.open();
        dispatch(Backward { plan, task, gate, y, grad, grad_y, grad_gate });
    });
    grad_y.finish()
}

struct Forward<'a, T> {
    plan: &'a Plan,
    task: &'a Task,
    x: &'a [T],
    gate: &'a [T],
    y: &'a [T],
    out: &'a mut [T],
}

impl<T: Element> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { plan, task, x, gate, y, out } = self;
        let width = plan.width;
        let first = task.rows.start * width;
        let (xs, ys) = (&x[first..], &y[first..]);
        let (mut x_row, mut y_row, mut out_row) = (T::scratch(width), T::scratch(width), T::scratch(width));
        let mut gate_row = T::scratch(width);
        for (source, rows) in plan.modulation.groups(&plan.rows, task) {
            let gate = T::view(plan.columns.of(gate, source, width), &mut gate_row);
            for row in rows {
                let x = T::view(&xs[row * width..][..width], &mut x_row);
                let y = T::view(&ys[row * width..][..width], &mut y_row);
                let out = &mut out[row * width..][..width];
                update(
                    simd,
                    [T::view_mut(out, &mut out_row)],
                    [x, gate, y],
                    #[inline(always)]
                    |_, [x, gate, y]| [simd.mul_add_e_f32s(gate, y, x)],
                );
                T::commit(out, &out_row);
            }
        }
    }
}

struct Backward<'a, T> {
    plan: &'a Plan,
    task: &'a Task,
    gate: &'a [T],
    y: &'a [T],
    grad: &'a [T],
    grad_y: &'a mut [T],
    grad_gate: &'a mut [f32],
}

impl<T: Element> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { plan, task, gate, y, grad, grad_y, grad_gate } = self;
        let width = plan.width;
        let first = task.rows.start * width;
        let (ys, grads) = (&y[first..], &grad[first..]);
        let (mut y_row, mut grad_row, mut out_row) =
            (T::scratch(width), T::scratch(width), T::scratch(width));
        let mut gate_row = T::scratch(width);
        let groups = plan.modulation.groups(&plan.rows, task);
        let columns = plan.columns;
        for ((source, rows), sums) in groups.zip(grad_gate.chunks_exact_mut(columns.row.max(1))) {
            let sums = &mut sums[columns.first..][..width];
            let gate = T::view(plan.columns.of(gate, source, width), &mut gate_row);
            for row in rows {
                let y = T::view(&ys[row * width..][..width], &mut y_row);
                let grad = T::view(&grads[row * width..][..width], &mut grad_row);
                let out = &mut grad_y[row * width..][..width];
                update(
                    simd,
                    [T::view_mut(out, &mut out_row), &mut *sums],
                    [gate, y, grad],
                    #[inline(always)]
                    |[_, sum], [gate, y, grad]| {
                        [simd.mul_f32s(grad, gate), simd.mul_add_e_f32s(grad, y, sum)]
                    },
                );
                T::commit(out, &out_row);
            }
        }
    }
}
