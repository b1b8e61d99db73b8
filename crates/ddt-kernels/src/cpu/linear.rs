//! Forward and backward of [`crate::linear`].

use rayon::prelude::*;

use super::gemm::{Left, Packed, Right, add_product, product};
use super::rows::sum_rows;

/// Sizes of a layer and its input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

/// `x weight^T + bias`, (rows, outputs).
pub(crate) fn forward(sizes: Sizes, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let Sizes { rows, inputs, outputs } = sizes;
    product(Left::rows(x, rows, inputs), &Packed::new(Right::columns(weight, inputs, outputs)), bias)
}

/// The gradient of `x`, `grad weight`.
pub(crate) fn backward_x(sizes: Sizes, weight: &[f32], grad: &[f32]) -> Vec<f32> {
    let Sizes { rows, inputs, outputs } = sizes;
    product(Left::rows(grad, rows, outputs), &Packed::new(Right::rows(weight, outputs, inputs)), None)
}

/// Adds the gradient of `x` to `sum`.
pub(crate) fn add_backward_x(sizes: Sizes, weight: &[f32], grad: &[f32], sum: &mut [f32]) {
    let Sizes { rows, inputs, outputs } = sizes;
    let right = Packed::new(Right::rows(weight, outputs, inputs));
    add_product(Left::rows(grad, rows, outputs), &right, sum);
}

/// The gradient of `weight`, `grad^T x`.
pub(crate) fn backward_weight(sizes: Sizes, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let Sizes { rows, inputs, outputs } = sizes;
    product(Left::columns(grad, outputs, rows), &Packed::new(Right::rows(x, rows, inputs)), None)
}

/// Rows of one partial sum.
const TASK_ROWS: usize = 128;

/// The gradient of `bias`: the sums of the columns of `grad`.
pub(crate) fn backward_bias(sizes: Sizes, grad: &[f32]) -> Vec<f32> {
    let width = sizes.outputs;
    if width == 0 {
        return Vec::new();
    }
    let partial: Vec<Vec<f32>> =
        grad.par_chunks(TASK_ROWS * width).map(|rows| sum_rows(rows, width)).collect();
    sum_rows(&partial.concat(), width)
}
