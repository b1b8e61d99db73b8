//! The systems without a split: Improved-SiT, SiT and REPA.

use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

use crate::{
    config::DdtConfig,
    ddt::Ddt,
    embed::ConditionEmbed,
    network::VelocityNetwork,
    network_config::{Family, NetworkConfig},
    projector::Projector,
    velocity_decoder::VelocityDecoder,
};

/// A velocity decoder alone: time and class modulate all of its blocks.
///
/// ```text
/// c = silu(t_emb + y_emb)           Improved-SiT; without the SiLU in SiT and REPA, whose blocks have it
/// v = decoder(x_t, c)
/// ```
///
/// REPA was published in the opposite time; here it is turned: `v(x, t) = -v_REPA(x, 1 - t)`.
#[derive(Debug, Clone)]
pub struct DecoderOnly {
    cfg: NetworkConfig,
    condition: ConditionEmbed,
    decoder: VelocityDecoder,
    projector: Option<Projector>,
}

impl DecoderOnly {
    /// Parameters `t_embedder`, `y_embedder`, `x_embedder`, `blocks`, `final_layer`, and REPA's
    /// `projectors.0`. All blocks of `cfg` are decoder blocks.
    ///
    /// # Errors
    /// When the configuration makes no network of a family without halves, or `vb` lacks a parameter.
    pub fn new(cfg: &NetworkConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        if cfg.family.has_halves() {
            bail!("expected a family without halves, got {:?}", cfg.family);
        }
        let num_decoder_blocks = cfg.sizes.num_encoder_blocks + cfg.sizes.num_decoder_blocks;
        let sizes = DdtConfig { num_encoder_blocks: 0, num_decoder_blocks, ..cfg.sizes.clone() };
        let whole = NetworkConfig { sizes, ..cfg.clone() };
        let projector = |it| Projector::new(cfg.sizes.hidden_size, it, vb.pp("projectors").pp(0));
        Ok(Self {
            condition: ConditionEmbed::new(&whole, vb.clone())?,
            decoder: VelocityDecoder::from_config(&whole, vb.clone())?,
            projector: cfg.projection.as_ref().map(projector).transpose()?,
            cfg: cfg.clone(),
        })
    }

    /// What its projection head makes of the features of
    /// [`forward_with_features`](VelocityNetwork::forward_with_features) at the head's `align_layer`;
    /// `None` without a head.
    ///
    /// # Shapes
    /// `features: (B, L, D) -> (B, L, feature_size)`.
    pub fn project(&self, features: &Tensor) -> Result<Option<Tensor>> {
        self.projector.as_ref().map(|it| it.forward(features)).transpose()
    }
}

impl VelocityNetwork for DecoderOnly {
    fn config(&self) -> &NetworkConfig {
        &self.cfg
    }

    fn forward(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(self.forward_with_features(x_t, t, labels, 0)?.0)
    }

    fn forward_with_features(
        &self,
        x_t: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        align_layer: usize,
    ) -> Result<(Tensor, Tensor)> {
        let reversed = self.cfg.family == Family::Repa;
        let own_t = if reversed { t.affine(-1.0, 1.0)? } else { t.clone() };
        let (_, condition) = self.condition.forward(&own_t, labels)?; // (B, 1, D)
        let modulations = self.decoder.modulations(&condition)?;
        let (velocity, features) = self.decoder.forward_with_features(x_t, &modulations, align_layer)?;
        Ok((if reversed { velocity.neg()? } else { velocity }, features))
    }

    fn halves(&self) -> Option<&Ddt> {
        None
    }
}
