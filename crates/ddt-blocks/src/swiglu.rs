//! The gated MLP.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::linear::Linear;

/// Hidden size of DDT's MLP: two thirds of four times `hidden_size`, rounded down.
pub fn swiglu_hidden_size(hidden_size: usize) -> usize {
    2 * (4 * hidden_size) / 3
}

/// `y = w2(silu(w1 x) * w3 x)`, without biases.
#[derive(Debug, Clone)]
pub struct SwiGlu {
    w1: Linear,
    w2: Linear,
    w3: Linear,
}

impl SwiGlu {
    /// `hidden` is the final inner size `F`; see [`swiglu_hidden_size`].
    pub fn new(size: usize, hidden: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            w1: Linear::no_bias(size, hidden, vb.pp("w1"))?,
            w2: Linear::no_bias(hidden, size, vb.pp("w2"))?,
            w3: Linear::no_bias(size, hidden, vb.pp("w3"))?,
        })
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let gated = ddt_kernels::swiglu(&self.w1.forward(xs)?, &self.w3.forward(xs)?)?; // (B, L, F)
        self.w2.forward(&gated)
    }
}
