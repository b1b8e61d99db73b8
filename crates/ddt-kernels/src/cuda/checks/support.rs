//! A kernel's result beside the exact one in f64, and random numbers on the device and on the host.

use half::bf16;

use crate::cuda::{Cuda, Element, Float, Result, Slice};

/// A kernel's result compared with f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The kernel, with its element type.
    pub name: String,
    /// The sizes it ran on.
    pub shape: String,
    /// Root mean square of the error, relative to that of the exact result.
    pub error_rms_relative: f64,
    /// The most that is allowed.
    pub tolerance: f64,
}

impl Check {
    /// A result of one rounding to `T`, everything before it in f32.
    pub(super) fn rounded<T: Float>(name: &str, shape: String, got: &[T], want: &[f64]) -> Self {
        let tolerance = if T::NAME == bf16::NAME { 3e-3 } else { 1e-6 };
        Self {
            name: format!("{name} {}", T::NAME),
            shape,
            error_rms_relative: relative_error(got, want),
            tolerance,
        }
    }

    /// Whether the error is within the tolerance.
    pub fn passed(&self) -> bool {
        self.error_rms_relative <= self.tolerance
    }
}

/// Values on the device, and the same values in f64.
pub(super) struct Data<T> {
    pub(super) device: Slice<T>,
    pub(super) exact: Vec<f64>,
}

/// A generator of values about normal in spread, the same everywhere.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// `len` values uniform in `centre` plus or minus `spread`, as `T` has them.
    pub(super) fn data<T: Float>(
        &mut self,
        cuda: &Cuda,
        len: usize,
        (centre, spread): (f32, f32),
    ) -> Result<Data<T>> {
        let uniform = |bits: u64| (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        let values: Vec<T> = (0..len).map(|_| T::from_f32(centre + spread * uniform(self.next()))).collect();
        let exact = values.iter().map(|value| f64::from(value.to_f32())).collect();
        Ok(Data { device: cuda.upload(&values)?, exact })
    }
}

/// Memory whose every byte is one: no result that a kernel forgot to write looks right.
pub(super) fn spoilt<T: Element>(cuda: &Cuda, len: usize) -> Result<Slice<T>> {
    cuda.upload(&vec![0xFFu8; len * size_of::<T>()])?.cast()
}

/// Root mean square of the error, relative to that of the exact result; infinite if a result is not finite.
pub(super) fn relative_error<T: Float>(got: &[T], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let squares = |it: &mut dyn Iterator<Item = f64>| it.map(|x| x * x).sum::<f64>();
    let error = squares(&mut got.iter().zip(want).map(|(got, want)| f64::from(got.to_f32()) - want));
    let error = (error / squares(&mut want.iter().copied()).max(1e-300)).sqrt();
    if error.is_nan() { f64::INFINITY } else { error }
}

/// `x + gate * (y + bias)`; rows of `width`.
pub(super) fn gate_residual(
    x: &[f64],
    y: &[f64],
    bias: &[f64],
    gate: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let width = bias.len();
    x.iter()
        .zip(y)
        .enumerate()
        .map(|(i, (x, y))| x + gate(i / width, i % width) * (y + bias[i % width]))
        .collect()
}

/// `norm(x) * (1 + scale) + shift`; by root mean square with a weight, or by mean and variance.
pub(super) fn norm_modulate(
    x: &[f64],
    width: usize,
    weight: Option<&[f64]>,
    shift_scale: impl Fn(usize, usize) -> (f64, f64),
    eps: f64,
) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.len());
    for (token, row) in x.chunks_exact(width).enumerate() {
        let mean = if weight.is_some() { 0.0 } else { row.iter().sum::<f64>() / width as f64 };
        let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let inverse = 1.0 / (square + eps).sqrt();
        out.extend(row.iter().enumerate().map(|(column, x)| {
            let (shift, scale) = shift_scale(token, column);
            (x - mean) * inverse * weight.map_or(1.0, |weight| weight[column]) * (1.0 + scale) + shift
        }));
    }
    out
}

/// `x / (1 + exp(-x))`.
pub(super) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `silu(a) b` of rows that hold `a`, then `b`.
pub(super) fn swiglu(ab: &[f64], hidden: usize) -> Vec<f64> {
    ab.chunks_exact(2 * hidden).flat_map(|row| (0..hidden).map(|i| silu(row[i]) * row[hidden + i])).collect()
}

/// Sizes of an attention: rows, tokens, heads, head size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) rows: usize,
    pub(super) tokens: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

/// Attention with query-key norm and rotary positions; `rope` holds (cos, sin).
pub(super) fn attention(
    sizes: Heads,
    qkv: &[f64],
    (q_weight, k_weight): (&[f64], &[f64]),
    rope: &[f64],
    eps: f64,
) -> Vec<f64> {
    let Heads { rows, tokens, heads, head_dim } = sizes;
    let at = |row: usize, token: usize, which: usize, head: usize| {
        &qkv[(((row * tokens + token) * 3 + which) * heads + head) * head_dim..][..head_dim]
    };
    let rotated = |x: &[f64], weight: &[f64], token: usize| -> Vec<f64> {
        let inverse = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / head_dim as f64 + eps).sqrt();
        let normed: Vec<f64> = x.iter().zip(weight).map(|(x, weight)| x * inverse * weight).collect();
        let turns = &rope[token * head_dim..][..head_dim];
        let pairs = normed.chunks_exact(2).zip(turns.chunks_exact(2));
        pairs.flat_map(|(x, t)| [x[0] * t[0] - x[1] * t[1], x[0] * t[1] + x[1] * t[0]]).collect()
    };
    let mut out = vec![0.0; rows * tokens * heads * head_dim];
    for row in 0..rows {
        for head in 0..heads {
            let keys: Vec<Vec<f64>> =
                (0..tokens).map(|token| rotated(at(row, token, 1, head), k_weight, token)).collect();
            for token in 0..tokens {
                let query = rotated(at(row, token, 0, head), q_weight, token);
                let score = |key: &Vec<f64>| -> f64 {
                    query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt()
                };
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                let total: f64 = weights.iter().sum();
                let out = &mut out[((row * tokens + token) * heads + head) * head_dim..][..head_dim];
                for (key, weight) in weights.iter().enumerate() {
                    for (out, value) in out.iter_mut().zip(at(row, key, 2, head)) {
                        *out += weight / total * value;
                    }
                }
            }
        }
    }
    out
}
