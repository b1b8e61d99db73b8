//! The projection head of published REPA networks.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use ddt_blocks::{Linear, init::xavier_linear};

use crate::network_config::Projection;

/// Linear, SiLU, Linear, SiLU, Linear: from tokens to the features they are compared with.
#[derive(Debug, Clone)]
pub(crate) struct Projector {
    layers: [Linear; 3],
}

impl Projector {
    /// Parameters `0`, `2` and `4`.
    pub(crate) fn new(hidden_size: usize, cfg: &Projection, vb: VarBuilder) -> Result<Self> {
        let (inner, out) = (cfg.hidden_size, cfg.feature_size);
        Ok(Self {
            layers: [
                xavier_linear(hidden_size, inner, vb.pp("0"))?,
                xavier_linear(inner, inner, vb.pp("2"))?,
                xavier_linear(inner, out, vb.pp("4"))?,
            ],
        })
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, feature_size)`.
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let [first, second, last] = &self.layers;
        let xs = ddt_kernels::silu(&first.forward(xs)?)?;
        last.forward(&ddt_kernels::silu(&second.forward(&xs)?)?)
    }
}
