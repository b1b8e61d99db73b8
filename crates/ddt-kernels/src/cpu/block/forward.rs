//! Forward pass.

use super::{Half, Inputs};
use crate::cpu::linear::{self, Sizes};
use crate::cpu::{attention, gate_residual, rms_norm_modulate, swiglu};

/// What the backward pass needs of the forward pass.
pub(crate) struct Saved {
    /// Input of the attention.
    pub(super) attn_in: Vec<f32>,
    pub(super) qkv: Vec<f32>,
    pub(super) heads: Vec<f32>,
    /// Result of the attention, before its gate.
    pub(super) attn_out: Vec<f32>,
    /// The residual stream between the halves.
    pub(super) middle: Vec<f32>,
    /// Input of the MLP.
    pub(super) mlp_in: Vec<f32>,
    pub(super) a: Vec<f32>,
    pub(super) b: Vec<f32>,
    pub(super) gated: Vec<f32>,
    /// Result of the MLP, before its gate.
    pub(super) mlp_out: Vec<f32>,
}

/// The result, (B, L, D).
pub(crate) fn forward(inputs: &Inputs<'_>) -> (Vec<f32>, Saved) {
    let Inputs { x, modulation, weights, .. } = *inputs;
    let (rows, d, f) = (inputs.tokens(), inputs.hidden(), inputs.mlp());
    let sizes = |inputs, outputs| Sizes { rows, inputs, outputs };

    let attn_in = rms_norm_modulate::forward(&inputs.norm(Half::Attention, x));
    let qkv = linear::forward(sizes(d, 3 * d), &attn_in, weights.qkv, None);
    let heads = attention::forward(&inputs.attention(&qkv));
    let attn_out = linear::forward(sizes(d, d), &heads, weights.proj_weight, Some(weights.proj_bias));
    let middle = gate_residual::forward(&inputs.gate(Half::Attention), x, modulation, &attn_out);

    let mlp_in = rms_norm_modulate::forward(&inputs.norm(Half::Mlp, &middle));
    let a = linear::forward(sizes(d, f), &mlp_in, weights.w1, None);
    let b = linear::forward(sizes(d, f), &mlp_in, weights.w3, None);
    let gated = swiglu::forward(&a, &b);
    let mlp_out = linear::forward(sizes(f, d), &gated, weights.w2, None);
    let out = gate_residual::forward(&inputs.gate(Half::Mlp), &middle, modulation, &mlp_out);
    (out, Saved { attn_in, qkv, heads, attn_out, middle, mlp_in, a, b, gated, mlp_out })
}
