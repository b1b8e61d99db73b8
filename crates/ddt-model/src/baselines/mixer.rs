//! DDT with a decoder without attention (Tab. 5 of arXiv:2504.05741).

use candle_core::{DType, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_blocks::{FinalLayer, Form, MixerBlock, PatchEmbed, Plain, unpatchify};

use crate::{
    ddt::ConditionEncoder,
    network::{DecoderModulations, DecoupledNetwork, VelocityNetwork, run_blocks},
    network_config::{NetworkConfig, TokenMixer},
};

/// DDT whose decoder mixes tokens by a 3 x 3 convolution, or not at all.
///
/// The encoder is DDT's, in any form; the decoder is always plain.
#[derive(Debug, Clone)]
pub struct MixerDdt<F: Form = Plain> {
    cfg: NetworkConfig,
    encoder: ConditionEncoder<F>,
    x_embedder: PatchEmbed,
    decoder_blocks: Vec<MixerBlock>,
    final_layer: FinalLayer,
}

impl MixerDdt {
    /// Parameters as [`Ddt`](crate::Ddt)'s; decoder blocks have `mixer` instead of `attn`.
    ///
    /// # Errors
    /// When the configuration makes no network or its mixer is attention, and when `vb` lacks a parameter.
    pub fn new(cfg: &NetworkConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let (sizes, d) = (&cfg.sizes, cfg.sizes.hidden_size);
        let block = match cfg.decoder_mixer {
            TokenMixer::Attention => {
                bail!("expected a decoder_mixer of conv3x3 or mlp, got attention, which is Ddt")
            }
            TokenMixer::Conv3x3 => MixerBlock::convolution,
            TokenMixer::Mlp => MixerBlock::mlp,
        };
        let decoder_blocks = sizes.num_encoder_blocks..sizes.num_blocks();
        Ok(Self {
            encoder: ConditionEncoder::new(sizes, vb.clone())?,
            x_embedder: PatchEmbed::new(sizes.in_channels, sizes.patch_size, d, vb.pp("x_embedder"))?,
            decoder_blocks: decoder_blocks.map(|i| block(d, vb.pp("blocks").pp(i))).collect::<Result<_>>()?,
            final_layer: FinalLayer::new(d, sizes.patch_dim(), vb.pp("final_layer"))?,
            cfg: cfg.clone(),
        })
    }

    pub(crate) fn into_form<F: Form>(self) -> Result<MixerDdt<F>> {
        let Self { cfg, encoder, x_embedder, decoder_blocks, final_layer } = self;
        Ok(MixerDdt { cfg, encoder: encoder.into_form()?, x_embedder, decoder_blocks, final_layer })
    }
}

impl<F: Form> VelocityNetwork for MixerDdt<F> {
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
        let (z_t, features) = self.encoder.forward_with_features(x_t, t, labels, align_layer)?;
        Ok((self.decode(x_t, &self.modulations(&z_t)?)?, features))
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
        Ok(DecoderModulations {
            blocks: self.decoder_blocks.iter().map(|it| it.modulation(z_t)).collect::<Result<_>>()?,
            final_shift_scale: self.final_layer.shift_scale(z_t)?.into(),
        })
    }

    fn decode(&self, x_t: &Tensor, modulations: &DecoderModulations) -> Result<Tensor> {
        let (_, _, h, w) = x_t.dims4()?;
        let DecoderModulations { final_shift_scale, .. } = modulations;
        let xs = self.x_embedder.forward(&x_t.to_dtype(final_shift_scale.dtype())?)?; // (B, L, D)
        let grid = self.cfg.sizes.token_grid(h, w);
        let blocks = modulations.of(&self.decoder_blocks)?;
        let (xs, _) =
            run_blocks(blocks, xs, 0, |(block, modulation), xs| block.forward(xs, modulation, grid))?;
        let patches = self.final_layer.forward(&xs, final_shift_scale.source()?)?.to_dtype(DType::F32)?; // (B, L, C P^2)
        unpatchify(&patches, self.cfg.sizes.patch_size, (h, w))
    }
}
