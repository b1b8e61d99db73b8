//! Networks of SiT's blocks: SiT and REPA as published, and the paper's DDT†.

use std::ops::Range;

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_blocks::{
    ConditionEmbed, FinalLayer, ProjectionHead, SitBlock, SitPatchEmbed, unpatchify_channel_last,
};
use ddt_kernels::silu;

use crate::{
    network::{DecoderModulations, DecoupledNetwork, NoisyInput, VelocityNetwork, run_blocks},
    network_config::{Family, NetworkConfig},
};

/// SiT (arXiv:2401.08740): `v = decoder(x_t, t_emb + y_emb)`.
///
/// Published networks predict a sigma too, the second half of the output's channels, which is not used.
#[derive(Debug, Clone)]
pub struct Sit {
    cfg: NetworkConfig,
    condition: ConditionEmbed,
    decoder: SitDecoder,
}

impl Sit {
    /// Parameters `t_embedder`, `y_embedder`, `x_embedder`, `blocks` and `final_layer`.
    ///
    /// # Errors
    /// When the configuration makes no network or `vb` lacks a parameter.
    pub fn new(cfg: &NetworkConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let sizes = &cfg.sizes;
        let channels = if cfg.family == Family::Sit { 2 * sizes.in_channels } else { sizes.in_channels };
        Ok(Self {
            condition: ConditionEmbed::sit(sizes.num_classes, sizes.hidden_size, vb.clone())?,
            decoder: SitDecoder::new(cfg, 0..sizes.num_blocks(), channels, vb)?,
            cfg: cfg.clone(),
        })
    }
}

impl VelocityNetwork for Sit {
    fn config(&self) -> &NetworkConfig {
        &self.cfg
    }

    fn forward_with_features(&self, input: NoisyInput<'_>, align_layer: usize) -> Result<(Tensor, Tensor)> {
        let (t_emb, y_emb) = self.condition.forward(input.t, input.labels)?;
        let modulations = self.decoder.modulations(&(y_emb + t_emb)?)?;
        self.decoder.forward_with_features(input.x_t, &modulations, align_layer)
    }
}

/// REPA (arXiv:2410.06940): SiT without sigma, published in the opposite time, and with its projection head.
///
/// ```text
/// v(x, t) = -v_REPA(x, 1 - t)
/// ```
#[derive(Debug, Clone)]
pub struct Repa {
    sit: Sit,
    head: Option<ProjectionHead>,
}

impl Repa {
    /// Parameters of [`Sit`], and `projectors.0` if the configuration has a head.
    ///
    /// # Errors
    /// When the configuration makes no network or `vb` lacks a parameter.
    pub fn new(cfg: &NetworkConfig, vb: VarBuilder) -> Result<Self> {
        let sit = Sit::new(cfg, vb.clone())?;
        let vb = vb.pp("projectors").pp(0);
        let head = cfg
            .projection
            .map(|it| ProjectionHead::xavier(cfg.sizes.hidden_size, it.hidden_size, it.feature_size, vb));
        Ok(Self { sit, head: head.transpose()? })
    }
}

impl VelocityNetwork for Repa {
    fn config(&self) -> &NetworkConfig {
        self.sit.config()
    }

    fn forward_with_features(&self, input: NoisyInput<'_>, align_layer: usize) -> Result<(Tensor, Tensor)> {
        let reversed = input.t.affine(-1.0, 1.0)?;
        let input = NoisyInput { t: &reversed, ..input };
        let (velocity, features) = self.sit.forward_with_features(input, align_layer)?;
        Ok((velocity.neg()?, features))
    }

    fn projection_head(&self) -> Option<&ProjectionHead> {
        self.head.as_ref()
    }
}

/// The paper's DDT†: DDT's split on SiT's blocks.
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
    fn encode_with_features(&self, input: NoisyInput<'_>, align_layer: usize) -> Result<(Tensor, Tensor)> {
        let (t_emb, y_emb) = self.condition.forward(input.t, input.labels)?;
        let c = (y_emb + &t_emb)?; // (B, 1, D)
        let xs = self.s_embedder.forward(&input.x_t.to_dtype(c.dtype())?)?; // (B, L, D)
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

    fn forward_with_features(&self, input: NoisyInput<'_>, align_layer: usize) -> Result<(Tensor, Tensor)> {
        let (z_t, features) = self.encode_with_features(input, align_layer)?;
        Ok((self.decode(input.x_t, &self.modulations(&z_t)?)?, features))
    }

    fn decoupled(&self) -> Option<&dyn DecoupledNetwork> {
        Some(self)
    }
}

impl DecoupledNetwork for DdtDagger {
    fn encode(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(self.encode_with_features(NoisyInput { x_t, t, labels }, 0)?.0)
    }

    fn modulations(&self, z_t: &Tensor) -> Result<DecoderModulations> {
        self.decoder.modulations(z_t)
    }

    fn decode(&self, x_t: &Tensor, modulations: &DecoderModulations) -> Result<Tensor> {
        Ok(self.decoder.forward_with_features(x_t, modulations, 0)?.0)
    }
}

/// SiT's blocks between its patch embedder and its final layer, under a condition of any number of tokens.
#[derive(Debug, Clone)]
struct SitDecoder {
    x_embedder: SitPatchEmbed,
    blocks: Vec<SitBlock>,
    final_layer: FinalLayer,
    in_channels: usize,
    patch_size: usize,
}

impl SitDecoder {
    /// Parameters `x_embedder`, the `blocks` of a range, and `final_layer`.
    fn new(cfg: &NetworkConfig, blocks: Range<usize>, out_channels: usize, vb: VarBuilder) -> Result<Self> {
        let (d, p) = (cfg.sizes.hidden_size, cfg.sizes.patch_size);
        Ok(Self {
            x_embedder: patch_embed(cfg, vb.pp("x_embedder"))?,
            blocks: sit_blocks(cfg, blocks, vb.clone())?,
            final_layer: FinalLayer::sit(d, out_channels * p * p, vb.pp("final_layer"))?,
            in_channels: cfg.sizes.in_channels,
            patch_size: p,
        })
    }

    /// The modulations of all layers under `condition`, `(B, 1 or L, D)`, before its SiLU.
    fn modulations(&self, condition: &Tensor) -> Result<DecoderModulations> {
        Ok(DecoderModulations {
            blocks: self.blocks.iter().map(|it| it.modulation(condition)).collect::<Result<_>>()?,
            final_shift_scale: self.final_layer.shift_scale(&silu(condition)?)?.into(),
        })
    }

    /// The velocity, and the output of block `align_layer` (from 1; 0 is the embedded latent).
    fn forward_with_features(
        &self,
        x_t: &Tensor,
        modulations: &DecoderModulations,
        align_layer: usize,
    ) -> Result<(Tensor, Tensor)> {
        let (_, _, h, w) = x_t.dims4()?;
        let DecoderModulations { final_shift_scale, .. } = modulations;
        let xs = self.x_embedder.forward(&x_t.to_dtype(final_shift_scale.dtype())?)?; // (B, L, D)
        let blocks = modulations.of(&self.blocks)?;
        let (xs, features) =
            run_blocks(blocks, xs, align_layer, |(block, modulation), xs| block.forward(xs, modulation))?;
        let patches = self.final_layer.forward(&xs, final_shift_scale.source()?)?.to_dtype(DType::F32)?;
        let output = unpatchify_channel_last(&patches, self.patch_size, (h, w))?;
        Ok((output.narrow(1, 0, self.in_channels)?, features))
    }
}

/// SiT's embedder of patches with fixed positions.
fn patch_embed(cfg: &NetworkConfig, vb: VarBuilder) -> Result<SitPatchEmbed> {
    let sizes = &cfg.sizes;
    let grid_side = cfg.grid_side.unwrap_or(0);
    SitPatchEmbed::new(sizes.in_channels, sizes.patch_size, sizes.hidden_size, grid_side, vb)
}

/// The `blocks` of a range.
fn sit_blocks(cfg: &NetworkConfig, range: Range<usize>, vb: VarBuilder) -> Result<Vec<SitBlock>> {
    let (d, heads) = (cfg.sizes.hidden_size, cfg.sizes.num_heads);
    range.map(|i| SitBlock::new(d, heads, vb.pp("blocks").pp(i))).collect()
}
