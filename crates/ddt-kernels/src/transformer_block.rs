//! A whole transformer block as one differentiable operation.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;

use crate::activation::{swiglu_backward, swiglu_forward};
use crate::attention::{self, Sizes};
use crate::gate_residual as gate;
use crate::linear::Linear;
use crate::modulation::Modulation;
use crate::op::{Gradient, WeightedOp, apply_weighted, check_shape, dims_bld};
use crate::packed_linear::Packable;
use crate::rms_norm_modulate as norm;
use crate::rope::RopeTable;

const NAME: &str = "transformer_block";

/// Weights of a [`transformer_block`].
///
/// # Shapes
///
/// `ada_ln_weight`: (6 D, D); `ada_ln_bias`: (6 D); `norm1`, `norm2`, `proj_bias`: (D); `qkv`: (3 D, D);
/// `qkv_bias`: (3 D); `qk_norm`: (K) twice; `proj_weight`: (D, D); `w1`, `w3`: (F, D); `w2`: (D, F);
/// `mlp_biases`: (F), (D), (F).
/// DDT's blocks have a `qk_norm` and none of the other optional weights; DiT^DH's have those, and no `qk_norm`.
#[derive(Debug, Clone, Copy)]
pub struct BlockWeights<'a> {
    /// From the condition to the modulation.
    pub ada_ln_weight: &'a Tensor,
    /// From the condition to the modulation.
    pub ada_ln_bias: &'a Tensor,
    /// The norm before the attention.
    pub norm1: &'a Tensor,
    /// To queries, keys and values.
    pub qkv: &'a Tensor,
    /// To queries, keys and values.
    pub qkv_bias: Option<&'a Tensor>,
    /// The norms of queries and keys, if any.
    pub qk_norm: Option<[&'a Tensor; 2]>,
    /// From the merged heads.
    pub proj_weight: &'a Tensor,
    /// From the merged heads.
    pub proj_bias: &'a Tensor,
    /// The norm before the MLP.
    pub norm2: &'a Tensor,
    /// To the activated half of the MLP.
    pub w1: &'a Tensor,
    /// From the MLP.
    pub w2: &'a Tensor,
    /// To the half of the MLP that is not activated.
    pub w3: &'a Tensor,
    /// Biases of `w1`, `w2` and `w3`, if any.
    pub mlp_biases: Option<[&'a Tensor; 3]>,
}

/// The block of arXiv:2504.05741, modulation, attention and MLP, as one operation.
///
/// ```text
/// shift1, scale1, gate1, shift2, scale2, gate2 = split(ada_ln(condition))
/// x += gate1 * attn(rms(x) (1 + scale1) + shift1)
/// x += gate2 * mlp (rms(x) (1 + scale2) + shift2)
/// ```
///
/// The attention is that of [`attention`](fn@crate::attention) between two linear layers; `mlp(y)` is
/// `w2 (silu(w1 y) * w3 y)`.
/// The same as the single operations in a row, but without candle's sum of gradients between each two of them, which
/// starts from zeros.
/// Differentiable in `x`, `condition` and all weights; on the CPU only.
///
/// All tensors are f32, and so are their gradients. The block computes in `dtype`, f32 or bf16: in bf16 all activations
/// and their gradients are rounded once, and all GEMMs multiply bf16. Sums, norms and softmax are f32.
///
/// # Shapes
///
/// `x`: (B, L, D), `condition`: (B, 1, D) or (B, L, D), `rope`: L tokens of head size K = D / `num_heads`;
/// result: (B, L, D).
///
/// # Errors
/// If a shape or a dtype is another, or if a tensor is not on the CPU.
pub fn transformer_block(
    x: &Tensor,
    condition: &Tensor,
    weights: &BlockWeights<'_>,
    rope: &RopeTable,
    num_heads: usize,
    eps: f64,
    dtype: DType,
) -> Result<Tensor> {
    let (b, l, d) = dims_bld(NAME, x)?;
    let columns = Modulation::new(NAME, "condition", &condition.into(), (b, l), d)?.widened(6 * d);
    let sizes = Sizes::of_block(NAME, x, rope, num_heads)?;
    let (k, f) = (sizes.head_dim, weights.w1.dim(0).unwrap_or(0));
    let BlockWeights { ada_ln_weight, ada_ln_bias, .. } = *weights;
    let BlockWeights {
        norm1,
        qkv,
        qkv_bias,
        qk_norm,
        proj_weight,
        proj_bias,
        norm2,
        w1,
        w2,
        w3,
        mlp_biases,
        ..
    } = *weights;
    // Stands for a weight that is not there.
    let none = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
    let ([q_norm, k_norm], [b1, b2, b3]) = (qk_norm.unwrap_or([&none; 2]), mlp_biases.unwrap_or([&none; 3]));
    let weights = [
        ada_ln_weight,
        ada_ln_bias,
        norm1,
        qkv,
        qkv_bias.unwrap_or(&none),
        q_norm,
        k_norm,
        proj_weight,
        proj_bias,
        norm2,
        w1,
        b1,
        w2,
        b2,
        w3,
        b3,
    ];
    let (norm_len, bias) = (if qk_norm.is_some() { k } else { 0 }, usize::from(mlp_biases.is_some()));
    let shapes: [&[usize]; 16] = [
        &[6 * d, d],
        &[6 * d],
        &[d],
        &[3 * d, d],
        &[if qkv_bias.is_some() { 3 * d } else { 0 }],
        &[norm_len],
        &[norm_len],
        &[d, d],
        &[d],
        &[d],
        &[f, d],
        &[bias * f],
        &[d, f],
        &[bias * d],
        &[f, d],
        &[bias * f],
    ];
    for ((name, weight), shape) in WEIGHTS.iter().zip(weights).zip(shapes) {
        check_shape(NAME, name, weight, shape)?;
    }
    let (shape, inputs) = (x.shape(), [x, condition]);
    let rows = b * condition.dim(1)?;
    match dtype {
        DType::F32 => {
            let block = Block::<f32>::new(columns, rows, rope, sizes, f, eps);
            apply_weighted(block, shape, inputs, weights)
        }
        DType::BF16 => {
            let block = Block::<bf16>::new(columns, rows, rope, sizes, f, eps);
            apply_weighted(block, shape, inputs, weights)
        }
        other => bail!("{NAME}: expected to compute in f32 or bf16, got {other:?}"),
    }
}

/// All weights, in the order of the operation.
const WEIGHTS: [&str; 16] = [
    "ada_ln_weight",
    "ada_ln_bias",
    "norm1",
    "qkv",
    "qkv_bias",
    "q_norm",
    "k_norm",
    "proj_weight",
    "proj_bias",
    "norm2",
    "w1",
    "w1_bias",
    "w2",
    "w2_bias",
    "w3",
    "w3_bias",
];

struct Block<T> {
    /// Of the modulation: shift, scale and gate of the attention, then of the MLP.
    columns: Modulation,
    /// Rows of the condition in all images.
    condition_rows: usize,
    rope: RopeTable,
    sizes: Sizes,
    /// D and F.
    d: usize,
    f: usize,
    eps: f32,
    /// Those of the forward pass, until a backward pass takes them.
    activations: Mutex<Option<Activations<T>>>,
}

/// The results of the forward pass that the backward pass needs.
struct Activations<T> {
    modulation: Vec<T>,
    /// Input of the attention.
    attn_in: Vec<T>,
    qkv: Vec<T>,
    heads: Vec<T>,
    /// Result of the attention, before its gate.
    attn_out: Vec<T>,
    /// The residual stream between attention and MLP.
    middle: Vec<T>,
    /// Input of the MLP.
    mlp_in: Vec<T>,
    a: Vec<T>,
    b: Vec<T>,
    gated: Vec<T>,
    /// Result of the MLP, before its gate.
    mlp_out: Vec<T>,
}

impl<T: Packable> WeightedOp<f32, 2, 16> for Block<T> {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 2] = ["x", "condition"];
    const WEIGHTS: [&'static str; 16] = WEIGHTS;

    fn forward(&self, inputs: [&[f32]; 2], weights: [&[f32]; 16]) -> Vec<f32> {
        let (out, activations) = self.run(inputs.map(T::rounded_copy).each_ref().map(AsRef::as_ref), weights);
        *self.activations.lock().unwrap_or_else(PoisonError::into_inner) = Some(activations);
        T::into_f32(out)
    }

    fn backward(
        &self,
        inputs: [&[f32]; 2],
        weights: [&[f32]; 16],
        grad: &[f32],
        _: [bool; 2],
    ) -> ([Gradient<f32>; 2], [Vec<f32>; 16]) {
        let inputs = inputs.map(T::rounded_copy);
        let inputs = inputs.each_ref().map(AsRef::as_ref);
        let activations = self.activations.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A second backward pass finds none.
        let activations = activations.unwrap_or_else(|| self.run(inputs, weights).1);
        let (grads, weight_grads) = self.gradients(inputs, weights, activations, &T::rounded_copy(grad));
        (grads.map(Gradient::Of), weight_grads)
    }
}

impl<T: Packable> Block<T> {
    fn new(
        columns: Modulation,
        condition_rows: usize,
        rope: &RopeTable,
        sizes: Sizes,
        f: usize,
        eps: f64,
    ) -> Self {
        let (d, rope, eps) = (sizes.heads * sizes.head_dim, rope.clone(), eps as f32);
        Self { columns, condition_rows, rope, sizes, d, f, eps, activations: Mutex::default() }
    }

    fn run(&self, [x, condition]: [&[T]; 2], weights: [&[f32]; 16]) -> (Vec<T>, Activations<T>) {
        let [
            ada_ln_weight,
            ada_ln_bias,
            norm1,
            qkv_weight,
            qkv_bias,
            q_norm,
            k_norm,
            proj_weight,
            proj_bias,
            norm2,
            w1,
            b1,
            w2,
            b2,
            w3,
            b3,
        ] = weights;
        let (d, f) = (self.d, self.f);
        let [qkv_bias, b1, b2, b3] = [qkv_bias, b1, b2, b3].map(|it| (!it.is_empty()).then_some(it));

        let modulation = self.ada_ln().apply(condition, ada_ln_weight, Some(ada_ln_bias));
        let attn_in = self.norm(x, norm1, &modulation, 0).forward();
        let qkv = self.linear(d, 3 * d).apply(&attn_in, qkv_weight, qkv_bias);
        let heads = attention::forward(&self.attention(&qkv, q_norm, k_norm));
        let attn_out = self.linear(d, d).apply(&heads, proj_weight, Some(proj_bias));
        let middle = gate::forward(self.part(2, 1), d, [x, &attn_out], &modulation);

        let mlp_in = self.norm(&middle, norm2, &modulation, 3).forward();
        let a = self.linear(d, f).apply(&mlp_in, w1, b1);
        let b = self.linear(d, f).apply(&mlp_in, w3, b3);
        let gated = swiglu_forward([&a, &b]);
        let mlp_out = self.linear(f, d).apply(&gated, w2, b2);
        let out = gate::forward(self.part(5, 1), d, [&middle, &mlp_out], &modulation);
        let activations =
            Activations { modulation, attn_in, qkv, heads, attn_out, middle, mlp_in, a, b, gated, mlp_out };
        (out, activations)
    }

    /// The gradients of all inputs. Activations are dropped as soon as they are used.
    fn gradients(
        &self,
        [x, condition]: [&[T]; 2],
        weights: [&[f32]; 16],
        activations: Activations<T>,
        grad: &[T],
    ) -> ([Vec<f32>; 2], [Vec<f32>; 16]) {
        let [ada_ln_weight, _, norm1, qkv_weight, qkv_bias, q_norm, k_norm, proj_weight, ..] = weights;
        let [_, _, _, _, _, _, _, _, _, norm2, w1, b1, w2, b2, w3, b3] = weights;
        let Activations { modulation, attn_in, qkv, heads, attn_out, middle, mlp_in, a, b, gated, mlp_out } =
            activations;
        let (d, f) = (self.d, self.f);
        let mut partials = self.columns.partials();

        let grad_out = gate::backward(self.part(5, 1), d, [&mlp_out, grad], &modulation, &mut partials);
        drop(mlp_out);
        let grad_w2 = self.grad_weight(f, d, &gated, &grad_out);
        let grad_b2 = self.grad_bias(b2, &grad_out);
        drop(gated);
        let grad_gated: Vec<T> = self.linear(f, d).grad_x(w2, &grad_out);
        let [grad_a, grad_b] = swiglu_backward([&a, &b], &grad_gated);
        drop((a, b, grad_gated));
        let packed = self.linear(d, f).pack(&mlp_in);
        let grad_w1 = self.linear(d, f).grad_weight(&packed, &grad_a);
        let grad_w3 = self.linear(d, f).grad_weight(&packed, &grad_b);
        let (grad_b1, grad_b3) = (self.grad_bias(b1, &grad_a), self.grad_bias(b3, &grad_b));
        let mut grad_in = self.linear(d, f).grad_x(w1, &grad_a);
        self.linear(d, f).add_grad_x(w3, &grad_b, &mut grad_in);
        drop((mlp_in, packed, grad_a, grad_b));
        let norm = self.norm(&middle, norm2, &modulation, 3);
        let (grad_middle, grad_norm2) = norm.backward_onto(grad, &T::collect(grad_in), &mut partials);

        let grad_out =
            gate::backward(self.part(2, 1), d, [&attn_out, &grad_middle], &modulation, &mut partials);
        drop(attn_out);
        let grad_proj_bias = self.linear(d, d).grad_bias(&grad_out);
        let grad_proj_weight = self.grad_weight(d, d, &heads, &grad_out);
        drop(heads);
        let grad_heads: Vec<T> = self.linear(d, d).grad_x(proj_weight, &grad_out);
        let attention = self.attention(&qkv, q_norm, k_norm);
        let (grad_qkv, [grad_q_norm, grad_k_norm]) = attention::backward(&attention, &grad_heads);
        drop((qkv, grad_heads));
        let grad_qkv_weight = self.grad_weight(d, 3 * d, &attn_in, &grad_qkv);
        let grad_qkv_bias = self.grad_bias(qkv_bias, &grad_qkv);
        drop(attn_in);
        let grad_in: Vec<T> = self.linear(d, 3 * d).grad_x(qkv_weight, &grad_qkv);
        let norm = self.norm(x, norm1, &modulation, 0);
        let (grad_x, grad_norm1) = norm.backward_onto(&grad_middle, &grad_in, &mut partials);

        drop(modulation);
        let grad_modulation: Vec<T> = self.columns.gradient(partials);
        let ada_ln = self.ada_ln();
        let weight_grads = [
            ada_ln.grad_weight(&ada_ln.pack(condition), &grad_modulation),
            ada_ln.grad_bias(&grad_modulation),
            grad_norm1,
            grad_qkv_weight,
            grad_qkv_bias,
            grad_q_norm,
            grad_k_norm,
            grad_proj_weight,
            grad_proj_bias,
            grad_norm2,
            grad_w1,
            grad_b1,
            grad_w2,
            grad_b2,
            grad_w3,
            grad_b3,
        ];
        let grad_condition = ada_ln.grad_x(ada_ln_weight, &grad_modulation);
        ([T::into_f32(grad_x), grad_condition], weight_grads)
    }

    /// Parts `part..part + count` of the modulation's six.
    fn part(&self, part: usize, count: usize) -> Modulation {
        self.columns.columns(part * self.d, count * self.d)
    }

    fn norm<'a>(
        &self,
        x: &'a [T],
        weight: &'a [f32],
        shift_scale: &'a [T],
        part: usize,
    ) -> norm::Inputs<'a, T, f32> {
        let (shift_scale, modulation) = (shift_scale.into(), self.part(part, 2));
        norm::Inputs { x, weight, shift_scale, modulation, eps: self.eps }
    }

    fn attention<'a>(&'a self, qkv: &'a [T], q_norm: &[f32], k_norm: &[f32]) -> attention::Inputs<'a, T> {
        let rotations = self.rope.rotations();
        if q_norm.is_empty() {
            return attention::Inputs::rotated(qkv, rotations, self.sizes);
        }
        attention::Inputs::new(qkv, [q_norm, k_norm], rotations, self.sizes, self.eps)
    }

    /// The gradient of a weight from `inputs` to `outputs`, from the layer's input and the gradient of its result.
    fn grad_weight(&self, inputs: usize, outputs: usize, x: &[T], grad: &[T]) -> Vec<f32> {
        let linear = self.linear(inputs, outputs);
        linear.grad_weight(&linear.pack(x), grad)
    }

    /// The gradient of a bias from the gradient of its layer's result; of one that is not there, nothing.
    fn grad_bias(&self, bias: &[f32], grad: &[T]) -> Vec<f32> {
        // The sums of columns of no layer's inputs.
        if bias.is_empty() { Vec::new() } else { self.linear(0, bias.len()).grad_bias(grad) }
    }

    fn ada_ln(&self) -> Linear {
        Linear { rows: self.condition_rows, inputs: self.d, outputs: 6 * self.d }
    }

    fn linear(&self, inputs: usize, outputs: usize) -> Linear {
        Linear { rows: self.sizes.batch * self.sizes.tokens, inputs, outputs }
    }
}

#[cfg(test)]
mod tests;
