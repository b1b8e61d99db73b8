//! The gated MLP.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::{linear::Linear, projection::Projection};

/// Hidden size of DDT's MLP: two thirds of four times `hidden_size`, rounded down.
pub fn swiglu_hidden_size(hidden_size: usize) -> usize {
    2 * (4 * hidden_size) / 3
}

/// `y = w2(silu(w1 x) * w3 x)`, without biases.
#[derive(Debug, Clone)]
pub struct SwiGlu {
    pub(crate) w1: Projection,
    pub(crate) w2: Projection,
    pub(crate) w3: Projection,
}

impl SwiGlu {
    /// `hidden` is the final inner size `F`; see [`swiglu_hidden_size`].
    pub fn new(size: usize, hidden: usize, vb: VarBuilder) -> Result<Self> {
        let linear = |inputs, outputs, vb| Projection::new(Linear::no_bias(inputs, outputs, vb)?);
        Ok(Self {
            w1: linear(size, hidden, vb.pp("w1"))?,
            w2: linear(hidden, size, vb.pp("w2"))?,
            w3: linear(size, hidden, vb.pp("w3"))?,
        })
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let gated = ddt_kernels::swiglu(&self.w1.forward(xs)?, &self.w3.forward(xs)?)?; // (B, L, F)
        self.w2.forward(&gated)
    }
}
