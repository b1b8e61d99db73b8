//! The gated MLP.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use ddt_kernels::PackedSwiGlu;

use crate::{
    linear::Linear,
    projection::{Projection, packs},
};

/// Hidden size of DDT's MLP: two thirds of four times `hidden_size`, rounded down.
pub fn swiglu_hidden_size(hidden_size: usize) -> usize {
    2 * (4 * hidden_size) / 3
}

/// `y = w2(silu(w1 x) * w3 x)`, without biases.
#[derive(Debug, Clone)]
pub struct SwiGlu {
    pub(crate) gate: Gate,
    pub(crate) w2: Projection,
}

/// The two layers before the gate: as they are where they are trained, packed as one where they are not.
#[derive(Debug, Clone)]
pub(crate) enum Gate {
    Plain { w1: Linear, w3: Linear },
    Packed(PackedSwiGlu),
}

impl SwiGlu {
    /// `hidden` is the final inner size `F`; see [`swiglu_hidden_size`].
    pub fn new(size: usize, hidden: usize, vb: VarBuilder) -> Result<Self> {
        let (w1, w3) =
            (Linear::no_bias(size, hidden, vb.pp("w1"))?, Linear::no_bias(size, hidden, vb.pp("w3"))?);
        let gate = if packs(&w1) && packs(&w3) {
            Gate::Packed(PackedSwiGlu::new(w1.weight(), w3.weight())?)
        } else {
            Gate::Plain { w1, w3 }
        };
        Ok(Self { gate, w2: Projection::new(Linear::no_bias(hidden, size, vb.pp("w2"))?)? })
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let gated = match &self.gate {
            Gate::Plain { w1, w3 } => ddt_kernels::swiglu(&w1.forward(xs)?, &w3.forward(xs)?)?,
            Gate::Packed(packed) => packed.forward(xs)?,
        };
        self.w2.forward(&gated) // from (B, L, F)
    }
}
