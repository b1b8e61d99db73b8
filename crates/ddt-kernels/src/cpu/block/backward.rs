//! Backward pass.

use rayon::prelude::*;

use super::{Half, Inputs, Saved, WEIGHTS};
use crate::cpu::linear::{Sizes, add_backward_x, backward_bias, backward_weight, backward_x};
use crate::cpu::{attention, gate_residual, rms_norm_modulate, swiglu};

/// Gradients of `x`, `modulation` and all weights.
pub(crate) struct Gradients {
    pub(crate) x: Vec<f32>,
    pub(crate) modulation: Vec<f32>,
    pub(crate) weights: [Vec<f32>; WEIGHTS],
}

pub(crate) fn backward(inputs: &Inputs<'_>, saved: Saved, grad: &[f32]) -> Gradients {
    let Inputs { x, modulation, kind, weights, .. } = *inputs;
    let (rows, d, f) = (inputs.tokens(), inputs.hidden(), inputs.mlp());
    let sizes = |inputs, outputs| Sizes { rows, inputs, outputs };
    let mut partial = vec![0.0; kind.partials(&inputs.rows()) * 6 * d];
    let Saved { attn_in, qkv, heads, attn_out, middle, mlp_in, a, b, gated, mlp_out } = saved;

    let gate = inputs.gate(Half::Mlp);
    let grad_out = gate_residual::backward_into(&gate, modulation, &mlp_out, grad, &mut partial);
    drop(mlp_out);
    let grad_w2 = backward_weight(sizes(f, d), &gated, &grad_out);
    drop(gated);
    let grad_gated = backward_x(sizes(f, d), weights.w2, &grad_out);
    let (grad_a, grad_b) = swiglu::backward(&a, &b, &grad_gated);
    drop((a, b, grad_gated));
    let grad_w1 = backward_weight(sizes(d, f), &mlp_in, &grad_a);
    let grad_w3 = backward_weight(sizes(d, f), &mlp_in, &grad_b);
    let mut grad_in = backward_x(sizes(d, f), weights.w1, &grad_a);
    add_backward_x(sizes(d, f), weights.w3, &grad_b, &mut grad_in);
    drop((mlp_in, grad_a, grad_b));
    let norm = inputs.norm(Half::Mlp, &middle);
    let (mut grad_middle, grad_norm2) = rms_norm_modulate::backward_into(&norm, &grad_in, &mut partial);
    add(&mut grad_middle, grad);

    let gate = inputs.gate(Half::Attention);
    let grad_out = gate_residual::backward_into(&gate, modulation, &attn_out, &grad_middle, &mut partial);
    drop(attn_out);
    let grad_proj_bias = backward_bias(sizes(d, d), &grad_out);
    let grad_proj_weight = backward_weight(sizes(d, d), &heads, &grad_out);
    drop(heads);
    let grad_heads = backward_x(sizes(d, d), weights.proj_weight, &grad_out);
    let grads = attention::backward(&inputs.attention(&qkv), &grad_heads);
    drop((qkv, grad_heads));
    let grad_qkv = backward_weight(sizes(d, 3 * d), &attn_in, &grads.qkv);
    drop(attn_in);
    let grad_in = backward_x(sizes(d, 3 * d), weights.qkv, &grads.qkv);
    let norm = inputs.norm(Half::Attention, x);
    let (mut grad_x, grad_norm1) = rms_norm_modulate::backward_into(&norm, &grad_in, &mut partial);
    add(&mut grad_x, &grad_middle);

    let weights = [
        grad_norm1,
        grad_qkv,
        grads.q_weight,
        grads.k_weight,
        grad_proj_weight,
        grad_proj_bias,
        grad_norm2,
        grad_w1,
        grad_w2,
        grad_w3,
    ];
    let modulation = kind.gradient(&inputs.rows(), partial, 6 * d);
    Gradients { x: grad_x, modulation, weights }
}

fn add(sum: &mut [f32], more: &[f32]) {
    const TASK: usize = 16 * 1024;
    let pairs = sum.par_chunks_mut(TASK).zip(more.par_chunks(TASK));
    pairs.for_each(|(sum, more)| sum.iter_mut().zip(more).for_each(|(sum, x)| *sum += x));
}
