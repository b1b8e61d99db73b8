//! DDT's second half: where the latent goes.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_blocks::{FinalLayer, Modulation, unpatchify, unpatchify_channel_last};

use crate::{
    config::DdtConfig,
    embed::TokenEmbed,
    network_block::{NetworkBlock, TokenGrid},
    network_config::{Family, NetworkConfig},
};

/// Turns (noisy latent, condition) into a velocity (Eq. 5 and Sec. 3.2).
///
/// The condition is a self-condition, one vector a token, in DDT; one vector an image works as well,
/// and makes the decoder alone the paper's Improved-SiT.
#[derive(Debug, Clone)]
pub struct VelocityDecoder {
    cfg: NetworkConfig,
    x_embedder: TokenEmbed,
    blocks: Vec<NetworkBlock>,
    final_layer: FinalLayer,
}

/// All that a condition means to a [`VelocityDecoder`]: every block's modulation and the final layer's.
///
/// Depends on the condition alone, so it may be kept for as long as the condition is.
#[derive(Debug, Clone)]
pub struct DecoderModulations {
    blocks: Vec<Modulation>,
    final_shift_scale: Tensor,
}

impl DecoderModulations {
    /// Images it is for.
    pub fn rows(&self) -> Result<usize> {
        self.final_shift_scale.dim(0)
    }

    /// The first `rows` images' share.
    pub fn narrow_rows(&self, rows: usize) -> Result<Self> {
        Ok(Self {
            blocks: self.blocks.iter().map(|it| it.narrow_rows(rows)).collect::<Result<_>>()?,
            final_shift_scale: self.final_shift_scale.narrow(0, 0, rows)?,
        })
    }
}

impl VelocityDecoder {
    /// Parameters `x_embedder`, the last `num_decoder_blocks` `blocks`, and `final_layer`.
    pub fn new(cfg: &DdtConfig, vb: VarBuilder) -> Result<Self> {
        Self::from_config(&cfg.clone().into(), vb)
    }

    /// The same for a network of any family.
    pub fn from_config(cfg: &NetworkConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let sizes = &cfg.sizes;
        let block = |i: usize| NetworkBlock::new(cfg, cfg.decoder_mixer, vb.pp("blocks").pp(i));
        let blocks = sizes.num_encoder_blocks..sizes.num_encoder_blocks + sizes.num_decoder_blocks;
        let (d, patch_dim, last) = (sizes.hidden_size, sizes.patch_dim(), vb.pp("final_layer"));
        Ok(Self {
            cfg: cfg.clone(),
            x_embedder: TokenEmbed::new(cfg, vb.pp("x_embedder"))?,
            blocks: blocks.map(block).collect::<Result<_>>()?,
            final_layer: match cfg.family {
                // Of SiT's learnt sigma nothing is used here, but its files have it.
                Family::Sit => FinalLayer::sit(d, 2 * patch_dim, last)?,
                family if family.has_sit_blocks() => FinalLayer::sit(d, patch_dim, last)?,
                _ => FinalLayer::new(d, patch_dim, last)?,
            },
        })
    }

    /// The velocity.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W)`; `condition: (B, L or 1, D)`; `-> (B, C, H, W)` in f32.
    pub fn forward(&self, x_t: &Tensor, condition: &Tensor) -> Result<Tensor> {
        self.forward_cached(x_t, &self.modulations(condition)?)
    }

    /// What `condition` means to this decoder.
    pub fn modulations(&self, condition: &Tensor) -> Result<DecoderModulations> {
        Ok(DecoderModulations {
            blocks: self.blocks.iter().map(|it| it.modulation(condition)).collect::<Result<_>>()?,
            final_shift_scale: self.final_layer.shift_scale(condition)?,
        })
    }

    /// The velocity under modulations computed before; [`forward`](Self::forward) without its products
    /// on the condition.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W) -> (B, C, H, W)` in f32.
    pub fn forward_cached(&self, x_t: &Tensor, modulations: &DecoderModulations) -> Result<Tensor> {
        Ok(self.forward_with_features(x_t, modulations, 0)?.0)
    }

    /// [`forward_cached`](Self::forward_cached), and the output of block `align_layer` of this decoder
    /// (from 1; 0 is the embedded latent), `(B, L, D)`.
    ///
    /// # Errors
    /// As [`forward_cached`](Self::forward_cached), and when there is no such block.
    pub fn forward_with_features(
        &self,
        x_t: &Tensor,
        modulations: &DecoderModulations,
        align_layer: usize,
    ) -> Result<(Tensor, Tensor)> {
        if align_layer > self.blocks.len() {
            bail!("expected an align_layer of at most {} blocks, got {align_layer}", self.blocks.len());
        }
        let (_, _, h, w) = x_t.dims4()?;
        let dtype = modulations.final_shift_scale.dtype();
        let mut xs = self.x_embedder.forward(&x_t.to_dtype(dtype)?)?; // (B, L, D)
        let grid = TokenGrid::of(x_t, &self.cfg, x_t.device())?;
        let mut features = xs.clone();
        for (i, (block, modulation)) in self.blocks.iter().zip(&modulations.blocks).enumerate() {
            xs = block.forward(&xs, modulation, &grid)?;
            if i + 1 == align_layer {
                features = xs.clone();
            }
        }
        let patches = self.final_layer.forward(&xs, &modulations.final_shift_scale)?; // (B, L, C P^2)
        let (patches, p) = (patches.to_dtype(DType::F32)?, self.cfg.sizes.patch_size);
        let velocity = if self.cfg.family.has_sit_blocks() {
            unpatchify_channel_last(&patches, p, (h, w))?.narrow(1, 0, self.cfg.sizes.in_channels)?
        } else {
            unpatchify(&patches, p, (h, w))?
        };
        Ok((velocity, features))
    }
}
