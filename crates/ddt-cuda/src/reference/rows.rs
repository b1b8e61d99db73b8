//! Products, norms and activations, row by row.

use crate::program::{GemmShape, Modulation};

const EPS: f64 = 1e-6;

/// `x / (1 + exp(-x))`.
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// `xs weight^T + bias`, summed in f64.
pub(super) fn product(xs: &[f32], weight: &[f32], bias: Option<&[f32]>, shape: GemmShape) -> Vec<f32> {
    let GemmShape { m, n, k } = shape;
    let mut out = Vec::with_capacity(m * n);
    for x in xs.chunks_exact(k) {
        for (column, w) in weight.chunks_exact(k).enumerate() {
            let sum: f64 = x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let bias = bias.map_or(0.0, |it| it[column]);
            out.push((sum + f64::from(bias)) as f32);
        }
    }
    out
}

/// `normalised(x) (1 + scale) + shift`, by root mean square times a weight, or by mean and variance.
pub(super) fn norm(
    xs: &[f32],
    weight: Option<&[f32]>,
    (table, rows): (&[f32], Modulation),
    d: usize,
) -> Vec<f32> {
    let mut out = Vec::with_capacity(xs.len());
    for (token, x) in xs.chunks_exact(d).enumerate() {
        let mean =
            |values: &dyn Fn(f64) -> f64| x.iter().map(|it| values(f64::from(*it))).sum::<f64>() / d as f64;
        let centre = if weight.is_some() { 0.0 } else { mean(&|it| it) };
        let deviation = (mean(&|it| (it - centre) * (it - centre)) + EPS).sqrt();
        let row = &table[token / rows.tokens_per_row * rows.stride..][..2 * d];
        for (i, x) in x.iter().enumerate() {
            let weight = weight.map_or(1.0, |it| it[i]);
            let normed = ((f64::from(*x) - centre) / deviation) as f32 * weight;
            out.push(normed * (1.0 + row[d + i]) + row[i]);
        }
    }
    out
}
