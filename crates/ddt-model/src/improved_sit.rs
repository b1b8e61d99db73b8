//! The decoder alone: the paper's Improved-SiT.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::{condition_encoder::ConditionEmbed, config::DdtConfig, velocity_decoder::VelocityDecoder};

/// DDT's blocks without the split: `silu(t_emb + y_emb)` modulates all of them.
#[derive(Debug, Clone)]
pub struct ImprovedSit {
    condition: ConditionEmbed,
    decoder: VelocityDecoder,
}

impl ImprovedSit {
    /// Parameters as a [`Ddt`](crate::Ddt)'s without `s_embedder`; all blocks of `cfg` are decoder blocks.
    pub fn new(cfg: &DdtConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let num_decoder_blocks = cfg.num_encoder_blocks + cfg.num_decoder_blocks;
        let cfg = DdtConfig { num_encoder_blocks: 0, num_decoder_blocks, ..cfg.clone() };
        let decoder = VelocityDecoder::new(&cfg, vb.clone())?;
        Ok(Self { condition: ConditionEmbed::new(&cfg, vb)?, decoder })
    }

    /// The velocity.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W)`; `t: (B)` in [0, 1]; `labels: (B)` u32; `-> (B, C, H, W)` in f32.
    pub fn forward(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (_, condition) = self.condition.forward(t, labels)?; // (B, 1, D)
        self.decoder.forward(x_t, &condition)
    }
}
