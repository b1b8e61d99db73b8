//! DDT†: DDT's split on SiT's blocks.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_blocks::{ConditionEmbed, SitBlock, SitPatchEmbed};

use crate::{
    baselines::sit::{SitDecoder, patch_embed, sit_blocks},
    network::{DecoderModulations, DecoupledNetwork, VelocityNetwork, run_blocks},
    network_config::NetworkConfig,
};

/// The paper's DDT†, the split on SiT's blocks:
///
/// ```text
/// z_t = t_emb + encoder_blocks(s_embedder(x_t), t_emb + y_emb)
/// v   = decoder(x_t, z_t)
/// ```
///
/// The paper says no more of it. Here each half has SiT's patch embedder and positions, the SiLUs stay in the
/// blocks' modulations, so that neither condition has one, and the output has the latent's channels.
#[derive(Debug, Clone)]
pub struct DdtDagger {
    cfg: NetworkConfig,
    condition: ConditionEmbed,
    s_embedder: SitPatchEmbed,
    encoder_blocks: Vec<SitBlock>,
    decoder: SitDecoder,
}

impl DdtDagger {
    /// Parameters as [`Ddt`](crate::Ddt)'s, with SiT's blocks.
    ///
    /// # Errors
    /// When the configuration makes no network or `vb` lacks a parameter.
    pub fn new(cfg: &NetworkConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let sizes = &cfg.sizes;
        let decoder_blocks = sizes.num_encoder_blocks..sizes.num_blocks();
        Ok(Self {
            condition: ConditionEmbed::sit(sizes.num_classes, sizes.hidden_size, vb.clone())?,
            s_embedder: patch_embed(cfg, vb.pp("s_embedder"))?,
            encoder_blocks: sit_blocks(cfg, 0..sizes.num_encoder_blocks, vb.clone())?,
            decoder: SitDecoder::new(cfg, decoder_blocks, sizes.in_channels, vb)?,
            cfg: cfg.clone(),
        })
    }

    /// `z_t`, and the output of encoder block `align_layer`.
    fn encode_with_features(
        &self,
        x_t: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        align_layer: usize,
    ) -> Result<(Tensor, Tensor)> {
        let (t_emb, y_emb) = self.condition.forward(t, labels)?;
        let c = (y_emb + &t_emb)?; // (B, 1, D)
        let xs = self.s_embedder.forward(&x_t.to_dtype(c.dtype())?)?; // (B, L, D)
        let (xs, features) = run_blocks(self.encoder_blocks.iter(), xs, align_layer, |block, xs| {
            block.forward(xs, &block.modulation(&c)?)
        })?;
        Ok((xs.broadcast_add(&t_emb)?, features))
    }
}

impl VelocityNetwork for DdtDagger {
    fn config(&self) -> &NetworkConfig {
        &self.cfg
    }

    fn forward_with_features(
        &self,
        x_t: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        align_layer: usize,
    ) -> Result<(Tensor, Tensor)> {
        let (z_t, features) = self.encode_with_features(x_t, t, labels, align_layer)?;
        Ok((self.decode(x_t, &self.modulations(&z_t)?)?, features))
    }

    fn decoupled(&self) -> Option<&dyn DecoupledNetwork> {
        Some(self)
    }
}

impl DecoupledNetwork for DdtDagger {
    fn encode(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(self.encode_with_features(x_t, t, labels, 0)?.0)
    }

    fn modulations(&self, z_t: &Tensor) -> Result<DecoderModulations> {
        self.decoder.modulations(z_t)
    }

    fn decode(&self, x_t: &Tensor, modulations: &DecoderModulations) -> Result<Tensor> {
        Ok(self.decoder.forward_with_features(x_t, modulations, 0)?.0)
    }
}
