//! A whole transformer block as one differentiable operation.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::activation::{swiglu_backward, swiglu_forward};
use crate::attention::{self, Sizes};
use crate::gate_residual as gate;
use crate::linear::Linear;
use crate::modulation::Modulation;
use crate::op::{FusedOp, Gradient, apply_f32, check_shape, dims_bld};
use crate::rms_norm_modulate as norm;
use crate::rope::RopeTable;

const NAME: &str = "transformer_block";

/// Weights of a [`transformer_block`].
///
/// # Shapes
///
/// `norm1`, `norm2`, `proj_bias`: (D); `qkv`: (3 D, D); `q_norm`, `k_norm`: (K); `proj_weight`: (D, D);
/// `w1`, `w3`: (F, D); `w2`: (D, F).
#[derive(Debug, Clone, Copy)]
pub struct BlockWeights<'a> {
    /// The norm before the attention.
    pub norm1: &'a Tensor,
    /// To queries, keys and values.
    pub qkv: &'a Tensor,
    /// The queries' norm.
    pub q_norm: &'a Tensor,
    /// The keys' norm.
    pub k_norm: &'a Tensor,
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
}

/// The block of arXiv:2504.05741, attention and MLP, as one operation.
///
/// ```text
/// shift1, scale1, gate1, shift2, scale2, gate2 = split(modulation)
/// x += gate1 * attn(rms(x) (1 + scale1) + shift1)
/// x += gate2 * mlp (rms(x) (1 + scale2) + shift2)
/// ```
///
/// The attention is that of [`attention`](fn@crate::attention) between two linear layers; `mlp(y)` is
/// `w2 (silu(w1 y) * w3 y)`.
/// The same as the single operations in a row, but without candle's sum of gradients between each two of them, which
/// starts from zeros and runs on one thread.
/// Differentiable in `x`, `modulation` and all weights; f32 on the CPU only.
///
/// # Shapes
///
/// `x`: (B, L, D), `modulation`: (B, 1, 6 D) or (B, L, 6 D), `rope`: L tokens of head size K,
/// `num_heads`: N = D / K; result: (B, L, D).
///
/// # Errors
///
/// If a shape is another, or if a tensor is not f32 on the CPU.
pub fn transformer_block(
    x: &Tensor,
    modulation: &Tensor,
    weights: &BlockWeights<'_>,
    rope: &RopeTable,
    num_heads: usize,
    eps: f64,
) -> Result<Tensor> {
    let (b, l, d) = dims_bld(NAME, x)?;
    let columns = Modulation::new(NAME, "modulation", &modulation.into(), (b, l), 6 * d)?;
    let sizes = Sizes::of_block(NAME, x, rope, num_heads)?;
    let (k, f) = (sizes.head_dim, weights.w1.dim(0).unwrap_or(0));
    let BlockWeights { norm1, qkv, q_norm, k_norm, proj_weight, proj_bias, norm2, w1, w2, w3 } = *weights;
    let inputs = [x, modulation, norm1, qkv, q_norm, k_norm, proj_weight, proj_bias, norm2, w1, w2, w3];
    let shapes: [&[usize]; 10] =
        [&[d], &[3 * d, d], &[k], &[k], &[d, d], &[d], &[d], &[f, d], &[d, f], &[f, d]];
    for ((name, weight), shape) in INPUTS.iter().zip(inputs).skip(2).zip(shapes) {
        check_shape(NAME, name, weight, shape)?;
    }
    let (rope, activations) = (rope.clone(), Mutex::default());
    apply_f32(Block { columns, rope, sizes, d, f, eps: eps as f32, activations }, x.shape(), inputs)
}

/// All inputs, in the order of the operation.
const INPUTS: [&str; 12] = [
    "x",
    "modulation",
    "norm1",
    "qkv",
    "q_norm",
    "k_norm",
    "proj_weight",
    "proj_bias",
    "norm2",
    "w1",
    "w2",
    "w3",
];

struct Block {
    /// Of the modulation: shift, scale and gate of the attention, then of the MLP.
    columns: Modulation,
    rope: RopeTable,
    sizes: Sizes,
    /// D and F.
    d: usize,
    f: usize,
    eps: f32,
    /// Those of the forward pass, until a backward pass takes them.
    activations: Mutex<Option<Activations>>,
}

/// The results of the forward pass that the backward pass needs.
struct Activations {
    /// Input of the attention.
    attn_in: Vec<f32>,
    qkv: Vec<f32>,
    heads: Vec<f32>,
    /// Result of the attention, before its gate.
    attn_out: Vec<f32>,
    /// The residual stream between attention and MLP.
    middle: Vec<f32>,
    /// Input of the MLP.
    mlp_in: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    gated: Vec<f32>,
    /// Result of the MLP, before its gate.
    mlp_out: Vec<f32>,
}

impl FusedOp<f32, 12> for Block {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 12] = INPUTS;

    fn forward(&self, inputs: [&[f32]; 12]) -> Vec<f32> {
        let (out, activations) = self.run(inputs);
        *self.activations.lock().unwrap_or_else(PoisonError::into_inner) = Some(activations);
        out
    }

    fn backward(&self, inputs: [&[f32]; 12], grad: &[f32], _: [bool; 12]) -> [Gradient<f32>; 12] {
        let activations = self.activations.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A second backward pass finds none.
        let activations = activations.unwrap_or_else(|| self.run(inputs).1);
        self.gradients(inputs, activations, grad).map(Gradient::Of)
    }
}

impl Block {
    fn run(&self, inputs: [&[f32]; 12]) -> (Vec<f32>, Activations) {
        let [x, modulation, norm1, qkv_weight, q_norm, k_norm, proj_weight, proj_bias, norm2, w1, w2, w3] =
            inputs;
        let (d, f) = (self.d, self.f);

        let attn_in = self.norm(x, norm1, modulation, 0).forward();
        let qkv = self.linear(d, 3 * d).apply(&attn_in, qkv_weight, None);
        let heads = attention::forward(&self.attention(&qkv, q_norm, k_norm));
        let attn_out = self.linear(d, d).apply(&heads, proj_weight, Some(proj_bias));
        let middle = gate::forward(self.part(2, 1), d, [x, &attn_out], modulation);

        let mlp_in = self.norm(&middle, norm2, modulation, 3).forward();
        let a = self.linear(d, f).apply(&mlp_in, w1, None);
        let b = self.linear(d, f).apply(&mlp_in, w3, None);
        let gated = swiglu_forward([&a, &b]);
        let mlp_out = self.linear(f, d).apply(&gated, w2, None);
        let out = gate::forward(self.part(5, 1), d, [&middle, &mlp_out], modulation);
        (out, Activations { attn_in, qkv, heads, attn_out, middle, mlp_in, a, b, gated, mlp_out })
    }

    /// The gradients of all inputs. Activations are dropped as soon as they are used.
    fn gradients(&self, inputs: [&[f32]; 12], activations: Activations, grad: &[f32]) -> [Vec<f32>; 12] {
        let [x, modulation, norm1, qkv_weight, q_norm, k_norm, proj_weight, _, norm2, w1, w2, w3] = inputs;
        let Activations { attn_in, qkv, heads, attn_out, middle, mlp_in, a, b, gated, mlp_out } = activations;
        let (d, f) = (self.d, self.f);
        let mut partials = self.columns.partials();

        let grad_out = gate::backward(self.part(5, 1), d, [&mlp_out, grad], modulation, &mut partials);
        drop(mlp_out);
        let grad_w2 = self.linear(f, d).grad_weight(&gated, &grad_out);
        drop(gated);
        let grad_gated = self.linear(f, d).grad_x(w2, &grad_out);
        let [grad_a, grad_b] = swiglu_backward([&a, &b], &grad_gated);
        drop((a, b, grad_gated));
        let grad_w1 = self.linear(d, f).grad_weight(&mlp_in, &grad_a);
        let grad_w3 = self.linear(d, f).grad_weight(&mlp_in, &grad_b);
        let mut grad_in = self.linear(d, f).grad_x(w1, &grad_a);
        self.linear(d, f).add_grad_x(w3, &grad_b, &mut grad_in);
        drop((mlp_in, grad_a, grad_b));
        let norm = self.norm(&middle, norm2, modulation, 3);
        let (mut grad_middle, grad_norm2) = norm.backward(&grad_in, &mut partials);
        add(&mut grad_middle, grad);

        let grad_out =
            gate::backward(self.part(2, 1), d, [&attn_out, &grad_middle], modulation, &mut partials);
        drop(attn_out);
        let grad_proj_bias = self.linear(d, d).grad_bias(&grad_out);
        let grad_proj_weight = self.linear(d, d).grad_weight(&heads, &grad_out);
        drop(heads);
        let grad_heads = self.linear(d, d).grad_x(proj_weight, &grad_out);
        let attention = self.attention(&qkv, q_norm, k_norm);
        let [grad_qkv, grad_q_norm, grad_k_norm] = attention::backward(&attention, &grad_heads);
        drop((qkv, grad_heads));
        let grad_qkv_weight = self.linear(d, 3 * d).grad_weight(&attn_in, &grad_qkv);
        drop(attn_in);
        let grad_in = self.linear(d, 3 * d).grad_x(qkv_weight, &grad_qkv);
        let norm = self.norm(x, norm1, modulation, 0);
        let (mut grad_x, grad_norm1) = norm.backward(&grad_in, &mut partials);
        add(&mut grad_x, &grad_middle);

        [
            grad_x,
            self.columns.gradient(partials),
            grad_norm1,
            grad_qkv_weight,
            grad_q_norm,
            grad_k_norm,
            grad_proj_weight,
            grad_proj_bias,
            grad_norm2,
            grad_w1,
            grad_w2,
            grad_w3,
        ]
    }

    /// Parts `part..part + count` of the modulation's six.
    fn part(&self, part: usize, count: usize) -> Modulation {
        self.columns.columns(part * self.d, count * self.d)
    }

    fn norm<'a>(
        &self,
        x: &'a [f32],
        weight: &'a [f32],
        shift_scale: &'a [f32],
        part: usize,
    ) -> norm::Inputs<'a, f32> {
        norm::Inputs {
            x,
            weight,
            shift_scale: shift_scale.into(),
            modulation: self.part(part, 2),
            eps: self.eps,
        }
    }

    fn attention<'a>(&'a self, qkv: &'a [f32], q_norm: &[f32], k_norm: &[f32]) -> attention::Inputs<'a, f32> {
        attention::Inputs::new(qkv, [q_norm, k_norm], self.rope.rotations(), self.sizes, self.eps)
    }

    fn linear(&self, inputs: usize, outputs: usize) -> Linear {
        Linear { rows: self.sizes.batch * self.sizes.tokens, inputs, outputs }
    }
}

fn add(sum: &mut [f32], more: &[f32]) {
    const TASK: usize = 16 * 1024;
    let pairs = sum.par_chunks_mut(TASK).zip(more.par_chunks(TASK));
    pairs.for_each(|(sum, more)| sum.iter_mut().zip(more).for_each(|(sum, x)| *sum += x));
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};

    use super::*;
    use crate::testing::{EPS, bits, block_inputs, check_in, plain_block, random, refused, rope};

    fn fused(x: &[Tensor], rope: &RopeTable, n: usize) -> Result<Tensor> {
        let weights = BlockWeights {
            norm1: &x[2],
            qkv: &x[3],
            q_norm: &x[4],
            k_norm: &x[5],
            proj_weight: &x[6],
            proj_bias: &x[7],
            norm2: &x[8],
            w1: &x[9],
            w2: &x[10],
            w3: &x[11],
        };
        transformer_block(&x[0], &x[1], &weights, rope, n, EPS)
    }

    #[test]
    fn matches_for_rows_of_modulation_per_image_and_per_token() -> Result<()> {
        for ((b, l), (n, k), f) in [((2, 16), (2, 16), 85), ((1, 70), (1, 8), 21), ((3, 1), (2, 4), 5)] {
            let rope = rope(l, k)?;
            for rows in [1, l] {
                let inputs = block_inputs([b, l], [n, k], f, rows)?;
                check_in(
                    &[(DType::F32, 2e-5)],
                    &inputs,
                    |x| fused(x, &rope, n),
                    |x| plain_block(x, &rope, n),
                )?;
            }
        }
        Ok(())
    }

    #[test]
    fn two_blocks_with_the_same_weights_add_their_gradients() -> Result<()> {
        let (n, k, l) = (2, 8, 4);
        let rope = rope(l, k)?;
        let inputs = block_inputs([2, l], [n, k], 24, 1)?;
        let twice = |x: &[Tensor], f: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
            let mut again = x.to_vec();
            again[0] = f(x)?;
            f(&again)
        };
        check_in(
            &[(DType::F32, 5e-5)],
            &inputs,
            |x| twice(x, &|x| fused(x, &rope, n)),
            |x| twice(x, &|x| plain_block(x, &rope, n)),
        )
    }

    #[test]
    fn a_second_backward_pass_finds_the_same_gradients() -> Result<()> {
        let rope = rope(4, 8)?;
        let vars =
            block_inputs([1, 4], [1, 8], 24, 4)?.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let loss = fused(&tensors, &rope, 1)?.sqr()?.sum_all()?;
        let (first, second) = (loss.backward()?, loss.backward()?);
        for var in &vars {
            let gradient = |grads: &candle_core::backprop::GradStore| match grads.get(var) {
                Some(grad) => bits(grad),
                None => candle_core::bail!("a variable without a gradient"),
            };
            assert_eq!(gradient(&first)?, gradient(&second)?);
        }
        Ok(())
    }

    #[test]
    fn wrong_arguments_are_refused() -> Result<()> {
        let rope = rope(4, 8)?;
        let good = block_inputs([1, 4], [1, 8], 24, 1)?;
        let refused_with = |at: usize, with: Tensor, part: &str| {
            let mut bad = good.clone();
            bad[at] = with;
            refused(fused(&bad, &rope, 1), part);
        };
        refused_with(0, random(1, &[4, 8])?, "expected x of shape (B, L, D)");
        refused_with(0, random(1, &[1, 5, 8])?, "got a rope table of head size 8 and 4 tokens");
        refused_with(1, random(1, &[1, 2, 48])?, "expected modulation of shape (1, 1, 48) or (1, 4, 48)");
        refused_with(3, random(1, &[8, 24])?, "expected qkv of shape [24, 8], got [8, 24]");
        refused_with(10, random(1, &[8, 23])?, "expected w2 of shape [8, 24]");
        let half = good.iter().map(|x| x.to_dtype(DType::BF16)).collect::<Result<Vec<_>>>()?;
        refused(fused(&half, &rope, 1), "expected x in f32 on the CPU");
        Ok(())
    }
}
