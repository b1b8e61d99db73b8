//! Improved-SiT: DDT's blocks without the split.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use ddt_blocks::{ConditionEmbed, Form, Plain};
use ddt_kernels::add_silu;

use crate::{
    config::DdtConfig,
    ddt::VelocityDecoder,
    network::VelocityNetwork,
    network_config::{Family, NetworkConfig},
};

/// A velocity decoder without a condition encoder: time and class modulate all of its blocks.
///
/// ```text
/// c = silu(t_emb + y_emb)
/// v = decoder(x_t, c)
/// ```
///
/// The paper's Improved-SiT, and its Improved-REPA when trained with alignment.
#[derive(Debug, Clone)]
pub struct ImprovedSit<F: Form = Plain> {
    cfg: NetworkConfig,
    condition: ConditionEmbed,
    decoder: VelocityDecoder<F>,
}

impl ImprovedSit {
    /// Parameters `t_embedder`, `y_embedder`, `x_embedder`, `blocks` and `final_layer`. All blocks of `sizes` are
    /// decoder blocks.
    ///
    /// # Errors
    /// When the sizes make no network or `vb` lacks a parameter.
    pub fn new(sizes: &DdtConfig, vb: VarBuilder) -> Result<Self> {
        let all =
            DdtConfig { num_encoder_blocks: 0, num_decoder_blocks: sizes.num_blocks(), ..sizes.clone() };
        Ok(Self {
            cfg: NetworkConfig { family: Family::ImprovedSit, ..sizes.clone().into() },
            condition: ConditionEmbed::new(sizes.num_classes, sizes.hidden_size, vb.clone())?,
            decoder: VelocityDecoder::new(&all, vb)?,
        })
    }

    pub(crate) fn into_form<F: Form>(self) -> Result<ImprovedSit<F>> {
        let Self { cfg, condition, decoder } = self;
        Ok(ImprovedSit { cfg, condition: condition.into_form::<F>()?, decoder: decoder.into_form()? })
    }
}

impl<F: Form> VelocityNetwork for ImprovedSit<F> {
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
        let (t_emb, y_emb) = self.condition.forward(t, labels)?;
        let modulations = self.decoder.modulations(&add_silu(&y_emb, &t_emb)?)?;
        self.decoder.forward_with_features(x_t, &modulations, align_layer)
    }
}
