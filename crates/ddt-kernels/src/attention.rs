//! Self-attention with query-key norm and rotary positions.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::check::check_alike;
use crate::cpu::attention::{Inputs, Sizes, backward, forward};
use crate::cpu::element::{Element, by_dtype};
use crate::cpu::storage::{self, with_slices};
use crate::rope::RopeTable;

const NAME: &str = "attention";

/// Self-attention with query-key norm and rotary positions, from one projection to the merged heads.
///
/// ```text
/// q = turn(q / sqrt(mean(q^2) + eps) * q_weight), k likewise
/// out = softmax(q k^T / sqrt(K)) v
/// ```
///
/// The attention of every block of arXiv:2504.05741, between its two projections; no mask.
/// `turn` multiplies elements (2m, 2m + 1) of token l, as one complex number, by `rope`'s row l, column m.
/// The L x L matrix of a head never exists as a whole, and the backward pass computes it again block by
/// block.
/// Differentiable in `qkv` and both weights.
/// Computed in f32, but that in bf16 queries, keys and probabilities are rounded to it before their products, whose
/// sums are f32; the result has the dtype of `qkv`.
///
/// # Shapes
///
/// `qkv`: (B, L, 3 N K), laid out (3, N, K) in the last axis; `q_weight`, `k_weight`: (K); `rope`: L tokens
/// of head size K; `num_heads`: N; result: (B, L, N K). K is a multiple of 4.
///
/// # Errors
///
/// If a shape is another, if dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn attention(
    qkv: &Tensor,
    q_weight: &Tensor,
    k_weight: &Tensor,
    rope: &RopeTable,
    num_heads: usize,
    eps: f64,
) -> Result<Tensor> {
    check_alike(NAME, &[("qkv", qkv), ("q_weight", q_weight), ("k_weight", k_weight)])?;
    let sizes = sizes(qkv, num_heads)?;
    let head_dim = sizes.head_dim;
    for (name, weight) in [("q_weight", q_weight), ("k_weight", k_weight)] {
        if weight.dims() != [head_dim] {
            bail!("{NAME}: expected {name} of shape ({head_dim}), got {:?}", weight.shape());
        }
    }
    if (rope.num_tokens(), rope.head_dim()) != (sizes.tokens, head_dim) {
        bail!(
            "{NAME}: expected a rope table of {} tokens and head size {head_dim}, got {} tokens and {}",
            sizes.tokens,
            rope.num_tokens(),
            rope.head_dim()
        );
    }
    let op = Attention { rope: rope.clone(), sizes, eps: eps as f32 };
    qkv.contiguous()?.apply_op3(&q_weight.contiguous()?, &k_weight.contiguous()?, op)
}

fn sizes(qkv: &Tensor, heads: usize) -> Result<Sizes> {
    let Ok((batch, tokens, width)) = qkv.dims3() else {
        bail!("{NAME}: expected qkv of shape (B, L, 3 N K), got {:?}", qkv.shape());
    };
    if heads == 0 || width == 0 || !width.is_multiple_of(3 * heads) {
        bail!("{NAME}: expected qkv of width 3 N K with N = {heads} heads, got width {width}");
    }
    let head_dim = width / (3 * heads);
    if !head_dim.is_multiple_of(4) {
        bail!("{NAME}: expected a head size that is a multiple of 4, got {head_dim}");
    }
    Ok(Sizes { batch, tokens, heads, head_dim })
}

struct Attention {
    rope: RopeTable,
    sizes: Sizes,
    eps: f32,
}

impl Attention {
    fn inputs<'a, T: Element>(&'a self, qkv: &'a [T], q_weight: &[T], k_weight: &[T]) -> Inputs<'a, T> {
        Inputs::new(qkv, (q_weight, k_weight), self.rope.turns(), self.sizes, self.eps)
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        q_weight: &CpuStorage,
        q_weight_layout: &Layout,
        k_weight: &CpuStorage,
        k_weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Sizes { batch, tokens, heads, head_dim } = self.sizes;
        by_dtype!(NAME, storage::dtype(qkv), T => {
            let qkv = storage::slice::<T>(qkv, qkv_layout)?;
            let q_weight = storage::slice(q_weight, q_weight_layout)?;
            let k_weight = storage::slice(k_weight, k_weight_layout)?;
            let out = forward(&self.inputs(qkv, q_weight, k_weight));
            Ok((storage::from_vec(out), Shape::from((batch, tokens, heads * head_dim))))
        })
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        q_weight: &Tensor,
        k_weight: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        by_dtype!(NAME, qkv.dtype(), T => {
            let grads = with_slices!(T; qkv, q_weight, k_weight, grad => {
                backward(&self.inputs(qkv, q_weight, k_weight), grad)
            });
            Ok((
                Some(Tensor::from_vec(grads.qkv, qkv.shape(), qkv.device())?),
                Some(Tensor::from_vec(grads.q_weight, q_weight.shape(), qkv.device())?),
                Some(Tensor::from_vec(grads.k_weight, k_weight.shape(), qkv.device())?),
            ))
        })
    }
}
