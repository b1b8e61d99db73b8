//! Self-attention with rotary positions and without norms.

use candle_core::{Result, Tensor};

use super::{Inputs, Sizes, backward, forward};
use crate::anywhere::Anywhere;
use crate::cpu::element::Element;
use crate::op::{FusedOp, Gradient, apply};
use crate::plain;
use crate::rope::RopeTable;

const NAME: &str = "rotary_attention";

/// Self-attention with rotary positions, from one projection to the merged heads: [`attention`](fn@crate::attention)
/// without the norm of queries and keys.
///
/// ```text
/// out = softmax(rotate(q) rotate(k)^T / sqrt(K)) v
/// ```
///
/// The attention of DiT^DH (arXiv:2510.11690). Differentiable in `qkv`.
///
/// # Shapes
///
/// `qkv`: (B, L, 3 N K), laid out (3, N, K) in the last axis; `rope`: L tokens of head size K; `num_heads`: N; result:
/// (B, L, N K). K is a multiple of 4.
///
/// # Errors
/// If a shape is another, or if the dtype is not f32, bf16 or f16.
pub fn rotary_attention(qkv: &Tensor, rope: &RopeTable, num_heads: usize) -> Result<Tensor> {
    let sizes = Sizes::of_qkv(NAME, qkv, num_heads)?;
    sizes.check_rope(NAME, rope)?;
    apply(RotaryAttention { rope: rope.clone(), sizes }, sizes.out_shape(), [qkv])
}

struct RotaryAttention {
    rope: RopeTable,
    sizes: Sizes,
}

impl Anywhere<1> for RotaryAttention {
    fn plain(&self, [qkv]: [&Tensor; 1]) -> Result<Tensor> {
        plain::attention(qkv, None, &self.rope, self.sizes.heads, |it| Ok(it.clone()))
    }
}

impl<T: Element> FusedOp<T, 1> for RotaryAttention {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 1] = ["qkv"];

    fn forward(&self, [qkv]: [&[T]; 1]) -> Vec<T> {
        forward(&Inputs::rotated(qkv, self.rope.rotations(), self.sizes))
    }

    fn backward(&self, [qkv]: [&[T]; 1], grad: &[T], _: [bool; 1]) -> [Gradient<T>; 1] {
        let inputs = Inputs::rotated(qkv, self.rope.rotations(), self.sizes);
        [Gradient::Of(backward(&inputs, grad).0)]
    }
}
