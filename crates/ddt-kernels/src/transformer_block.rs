//! A whole transformer block.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use crate::check::{check_alike, dims_bld, modulation_of};
use crate::cpu::attention::Sizes;
use crate::cpu::block::{Inputs, Saved, WEIGHTS, Weights, backward, forward};
use crate::cpu::storage::{self, with_slices};
use crate::ledger::Ledger;
use crate::modulation::Modulation;
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
    /// Of the norm before the attention.
    pub norm1: &'a Tensor,
    /// To queries, keys and values.
    pub qkv: &'a Tensor,
    /// Of the queries' norm.
    pub q_norm: &'a Tensor,
    /// Of the keys' norm.
    pub k_norm: &'a Tensor,
    /// From the merged heads.
    pub proj_weight: &'a Tensor,
    /// From the merged heads.
    pub proj_bias: &'a Tensor,
    /// Of the norm before the MLP.
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
/// The attention is that of [`attention`](fn@crate::attention) between two products; `mlp(y)` is
/// `w2 (silu(w1 y) * w3 y)`.
/// The same as the single operations in a row, without a sum of gradients between each two of them, which
/// candle makes of zeros, on one thread.
/// Differentiable in `x`, `modulation` and all weights; f32 on the CPU alone.
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
    let named = weights.named();
    check_alike(NAME, &[&[("x", x), ("modulation", modulation)][..], &named].concat())?;
    if x.dtype() != DType::F32 || !x.device().is_cpu() {
        bail!("{NAME}: expected x in f32 on the CPU, got {:?} on {:?}", x.dtype(), x.device().location());
    }
    let kind = modulation_of(NAME, ("modulation", modulation), (b, l), 6 * d)?;
    let head_dim = rope.head_dim();
    if num_heads.checked_mul(head_dim) != Some(d) || !head_dim.is_multiple_of(4) || rope.num_tokens() != l {
        bail!(
            "{NAME}: expected {num_heads} heads of a size that is a multiple of 4 and {l} tokens for x of {:?}, \
             got a rope table of head size {head_dim} and {} tokens",
            x.shape(),
            rope.num_tokens()
        );
    }
    let f = weights.w1.dim(0).unwrap_or(0);
    let shapes: [&[usize]; WEIGHTS] =
        [&[d], &[3 * d, d], &[head_dim], &[head_dim], &[d, d], &[d], &[d], &[f, d], &[d, f], &[f, d]];
    for ((name, weight), shape) in named.iter().zip(shapes) {
        if weight.dims() != shape {
            bail!("{NAME}: expected {name} of shape {shape:?}, got {:?}", weight.shape());
        }
    }
    let pair = |i: usize| Ok([named[2 * i].1.contiguous()?, named[2 * i + 1].1.contiguous()?]);
    let weights = (0..WEIGHTS / 2).map(pair).collect::<Result<Vec<_>>>()?;
    let ledger = Ledger::default();
    let token = ledger.token(&weights)?;
    let sizes = Sizes { batch: b, tokens: l, heads: num_heads, head_dim };
    let (rope, saved) = (rope.clone(), Mutex::new(None));
    let op = Block { weights, kind, rope, sizes, eps: eps as f32, ledger, saved };
    x.contiguous()?.apply_op3(&modulation.contiguous()?, &token, op)
}

impl<'a> BlockWeights<'a> {
    /// In the order of the CPU's gradients.
    fn named(&self) -> [(&'static str, &'a Tensor); WEIGHTS] {
        let Self { norm1, qkv, q_norm, k_norm, proj_weight, proj_bias, norm2, w1, w2, w3 } = *self;
        [
            ("norm1", norm1),
            ("qkv", qkv),
            ("q_norm", q_norm),
            ("k_norm", k_norm),
            ("proj_weight", proj_weight),
            ("proj_bias", proj_bias),
            ("norm2", norm2),
            ("w1", w1),
            ("w2", w2),
            ("w3", w3),
        ]
    }
}

struct Block {
    /// In pairs, in the order of the CPU's gradients.
    weights: Vec<[Tensor; 2]>,
    kind: Modulation,
    rope: RopeTable,
    sizes: Sizes,
    eps: f32,
    ledger: Ledger,
    /// Of the forward pass, until the backward pass takes it.
    saved: Mutex<Option<Saved>>,
}

impl Block {
    /// Runs `f` with this block's inputs.
    fn with_inputs<R>(&self, x: &[f32], modulation: &[f32], f: impl FnOnce(&Inputs<'_>) -> R) -> Result<R> {
        let [[norm1, qkv], [q_norm, k_norm], [proj_weight, proj_bias], [norm2, w1], [w2, w3]] =
            &self.weights[..]
        else {
            bail!("{NAME}: expected {WEIGHTS} weights");
        };
        with_slices!(f32; norm1, qkv, q_norm, k_norm, proj_weight, proj_bias, norm2, w1, w2, w3 => {
            let weights =
                Weights { norm1, qkv, q_norm, k_norm, proj_weight, proj_bias, norm2, w1, w2, w3 };
            let Self { kind, ref rope, sizes, eps, .. } = *self;
            Ok(f(&Inputs { x, modulation, kind, weights, turns: rope.turns(), sizes, eps }))
        })
    }
}

impl CustomOp3 for Block {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        modulation: &CpuStorage,
        modulation_layout: &Layout,
        _token: &CpuStorage,
        _token_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = storage::slice(x, x_layout)?;
        let modulation = storage::slice(modulation, modulation_layout)?;
        let (out, saved) = self.with_inputs(x, modulation, forward)?;
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        Ok((storage::from_vec(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        modulation: &Tensor,
        token: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let grads = with_slices!(f32; x, modulation, grad => {
            self.with_inputs(x, modulation, |inputs| {
                // A second backward pass finds nothing saved.
                let saved = saved.unwrap_or_else(|| forward(inputs).1);
                backward(inputs, saved, grad)
            })?
        });
        self.ledger.leave(grads.weights);
        Ok((
            Some(Tensor::from_vec(grads.x, x.shape(), x.device())?),
            Some(Tensor::from_vec(grads.modulation, modulation.shape(), x.device())?),
            Some(token.zeros_like()?),
        ))
    }
}
