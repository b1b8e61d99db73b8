//! Networks of DDT's blocks: without the split, and with a decoder without attention.

use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_blocks::{ConditionEmbed, Form, MixerBlock, Plain};
use ddt_kernels::add_silu;

use crate::{
    config::DdtConfig,
    ddt::{ConditionEncoder, VelocityDecoder},
    network::{DecoderModulations, DecoupledNetwork, NoisyInput, VelocityNetwork},
    network_config::{Family, NetworkConfig, TokenMixer},
};

/// Improved-SiT: a velocity decoder without a condition encoder; time and class modulate all of its blocks.
///
/// ```text
/// c = silu(t_emb + y_emb)
/// v = decoder(x_t, c)
/// ```
///
/// It is the paper's Improved-REPA when trained with alignment.
#[derive(Debug, Clone)]
pub struct ImprovedSit<F: Form = Plain> {
    cfg: NetworkConfig,
    condition: ConditionEmbed,
    decoder: VelocityDecoder<F::Block, F::Linear>,
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
        Ok(ImprovedSit { cfg, condition: condition.into_form::<F>()?, decoder: decoder.into_form::<F>()? })
    }
}

impl<F: Form> VelocityNetwork for ImprovedSit<F> {
    fn config(&self) -> &NetworkConfig {
        &self.cfg
    }

    fn forward_with_features(&self, input: NoisyInput<'_>, align_layer: usize) -> Result<(Tensor, Tensor)> {
        let (t_emb, y_emb) = self.condition.forward(input.t, input.labels)?;
        let modulations = self.decoder.modulations(&add_silu(&y_emb, &t_emb)?)?;
        self.decoder.forward_with_features(input.x_t, &modulations, align_layer)
    }
}

/// DDT whose decoder mixes tokens by a 3 x 3 convolution, or not at all (Tab. 5 of arXiv:2504.05741).
///
/// The encoder is DDT's, in any form; the decoder is always plain.
#[derive(Debug, Clone)]
pub struct MixerDdt<F: Form = Plain> {
    cfg: NetworkConfig,
    encoder: ConditionEncoder<F>,
    decoder: VelocityDecoder<MixerBlock>,
}

impl MixerDdt {
    /// Parameters as [`Ddt`](crate::Ddt)'s; decoder blocks have `mixer` instead of `attn`.
    ///
    /// # Errors
    /// When the configuration makes no network or its mixer is attention, and when `vb` lacks a parameter.
    pub fn new(cfg: &NetworkConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let block = match cfg.decoder_mixer {
            TokenMixer::Attention => {
                bail!("expected a decoder_mixer of conv3x3 or mlp, got attention, which is Ddt")
            }
            TokenMixer::Conv3x3 => MixerBlock::convolution,
            TokenMixer::Mlp => MixerBlock::mlp,
        };
        let block = |vb: VarBuilder| block(cfg.sizes.hidden_size, vb);
        Ok(Self {
            encoder: ConditionEncoder::new(&cfg.sizes, vb.clone())?,
            decoder: VelocityDecoder::with_blocks(&cfg.sizes, block, vb)?,
            cfg: cfg.clone(),
        })
    }

    pub(crate) fn into_form<F: Form>(self) -> Result<MixerDdt<F>> {
        let Self { cfg, encoder, decoder } = self;
        Ok(MixerDdt { cfg, encoder: encoder.into_form()?, decoder })
    }
}

impl<F: Form> VelocityNetwork for MixerDdt<F> {
    fn config(&self) -> &NetworkConfig {
        &self.cfg
    }

    fn forward_with_features(&self, input: NoisyInput<'_>, align_layer: usize) -> Result<(Tensor, Tensor)> {
        let (z_t, features) = self.encoder.forward_with_features(input, align_layer)?;
        Ok((self.decoder.forward(input.x_t, &z_t)?, features))
    }

    fn decoupled(&self) -> Option<&dyn DecoupledNetwork> {
        Some(self)
    }
}

impl<F: Form> DecoupledNetwork for MixerDdt<F> {
    fn encode(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor> {
        self.encoder.forward(x_t, t, labels)
    }

    fn modulations(&self, z_t: &Tensor) -> Result<DecoderModulations> {
        self.decoder.modulations(z_t)
    }

    fn decode(&self, x_t: &Tensor, modulations: &DecoderModulations) -> Result<Tensor> {
        self.decoder.forward_cached(x_t, modulations)
    }
}
