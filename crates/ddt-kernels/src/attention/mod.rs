//! Self-attention with query-key norm and rotary positions, without the norm, and without either.

use candle_core::{Result, Tensor};

use crate::anywhere::Anywhere;
use crate::cpu::element::Element;
#[cfg(feature = "candle-cuda")]
use crate::cuda::{self, Cuda, Slice};
#[cfg(feature = "candle-cuda")]
use crate::gpu::View;
use crate::op::{FusedOp, Gradient, apply, check_shape};
use crate::plain;
use crate::rope::RopeTable;

mod backward;
mod forward;
mod inputs;
mod qk_norm;
mod rotary;
mod small_matmul;
mod softmax;
#[cfg(test)]
mod tests;

pub(crate) use backward::backward;
pub(crate) use forward::{forward, forward_into};
pub(crate) use inputs::{Inputs, Sizes};
pub use rotary::rotary_attention;
pub use softmax::softmax_attention;

const NAME: &str = "attention";

/// Self-attention with query-key norm and rotary positions, from one projection to the merged heads.
///
/// ```text
/// q = rotate(q / sqrt(mean(q^2) + eps) * q_weight), k likewise
/// out = softmax(q k^T / sqrt(K)) v
/// ```
///
/// The attention of every block of arXiv:2504.05741, between its two projections; no mask.
/// `rotate` multiplies elements (2m, 2m + 1) of token l, as one complex number, by `rope`'s row l, column m.
/// The L x L matrix of a head never exists as a whole; the backward pass recomputes it block by block.
/// Differentiable in `qkv` and both weights.
/// Computed in f32, except that bf16 queries, keys and probabilities are rounded before their matmuls, whose sums are
/// f32; the result has the dtype of `qkv`.
///
/// # Shapes
///
/// `qkv`: (B, L, 3 N K), laid out (3, N, K) in the last axis; `q_weight`, `k_weight`: (K); `rope`: L tokens
/// of head size K; `num_heads`: N; result: (B, L, N K). K is a multiple of 4.
///
/// # Errors
/// If a shape is another, if dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn attention(
    qkv: &Tensor,
    q_weight: &Tensor,
    k_weight: &Tensor,
    rope: &RopeTable,
    num_heads: usize,
    eps: f64,
) -> Result<Tensor> {
    let sizes = Sizes::of_qkv(NAME, qkv, num_heads)?;
    for (name, weight) in [("q_weight", q_weight), ("k_weight", k_weight)] {
        check_shape(NAME, name, weight, &[sizes.head_dim])?;
    }
    sizes.check_rope(NAME, rope)?;
    let op = Attention { rope: rope.clone(), sizes, eps: eps as f32 };
    apply(op, sizes.out_shape(), [qkv, q_weight, k_weight])
}

struct Attention {
    rope: RopeTable,
    sizes: Sizes,
    eps: f32,
}

impl Anywhere<3> for Attention {
    fn plain(&self, [qkv, q_weight, k_weight]: [&Tensor; 3]) -> Result<Tensor> {
        let norms = Some(([q_weight, k_weight], f64::from(self.eps)));
        plain::attention(qkv, norms, &self.rope, self.sizes.heads, |it| Ok(it.clone()))
    }

    #[cfg(feature = "candle-cuda")]
    fn fits<T: cuda::Float>(&self, _: &[usize]) -> bool {
        let Sizes { batch, tokens, heads, head_dim } = self.sizes;
        cuda::Attention::<T>::takes(batch, tokens, heads, head_dim)
    }

    #[cfg(feature = "candle-cuda")]
    fn launch<T: cuda::Float>(
        &self,
        cuda: &Cuda,
        [qkv, q_weight, k_weight]: &[View<T>; 3],
        out: &Slice<T>,
    ) -> cuda::Result<()> {
        let Sizes { tokens, heads, .. } = self.sizes;
        crate::gpu::with_slice(cuda, self.rope.turns(), |rope| {
            let [qkv, q_weight, k_weight] = [qkv, q_weight, k_weight].map(|it| &it.slice);
            let eps = self.eps;
            cuda.attention_of(&cuda::Attention { qkv, q_weight, k_weight, rope, tokens, heads, eps, out })
        })
    }
}

impl<T: Element> FusedOp<T, 3> for Attention {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 3] = ["qkv", "q_weight", "k_weight"];

    fn forward(&self, [qkv, q_weight, k_weight]: [&[T]; 3]) -> Vec<T> {
        forward(&Inputs::new(qkv, [q_weight, k_weight], self.rope.rotations(), self.sizes, self.eps))
    }

    fn backward(&self, [qkv, q_weight, k_weight]: [&[T]; 3], grad: &[T], _: [bool; 3]) -> [Gradient<T>; 3] {
        let inputs = Inputs::new(qkv, [q_weight, k_weight], self.rope.rotations(), self.sizes, self.eps);
        let (grad_qkv, [grad_q, grad_k]) = backward(&inputs, grad);
        [grad_qkv, T::collect(grad_q), T::collect(grad_k)].map(Gradient::Of)
    }
}
