//! The Decoupled Diffusion Transformer (arXiv:2504.05741, Fig. 2).
//!
//! ```text
//! c   = silu(t_emb + y_emb)
//! z_t = silu(t_emb + encoder_blocks(s_embedder(x_t), c))           (Eq. 4)
//! v_t = final_layer(decoder_blocks(x_embedder(x_t), z_t), z_t)     (Eq. 5)
//! ```

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_blocks::{
    AxialRope2d, Block, ConditionEmbed, FinalLayer, Form, Frozen, Fused, Linear, PatchEmbed, Plain,
    TokenGrid, TransformerBlock, unpatchify,
};
use ddt_kernels::add_silu;

use crate::{
    config::DdtConfig,
    init::SeededInit,
    network::{DecoderModulations, DecoupledNetwork, NoisyInput, VelocityNetwork, run_blocks},
    network_config::NetworkConfig,
};

/// The Decoupled Diffusion Transformer: a [`ConditionEncoder`] and a [`VelocityDecoder`].
///
/// `Ddt` is the definition: layer by layer, differentiable, in any dtype. [`fuse`](Self::fuse) makes the form for
/// training and [`freeze`](Self::freeze) the form for sampling; both compute the same.
#[derive(Debug, Clone)]
pub struct Ddt<F: Form = Plain> {
    cfg: NetworkConfig,
    encoder: ConditionEncoder<F>,
    decoder: VelocityDecoder<F::Block, F::Linear>,
}

/// The form for training: each block is one differentiable operation. On the CPU, with f32 weights.
pub type TrainingDdt = Ddt<Fused>;

/// The form for sampling: packed weights, not differentiable. In f32 and bf16 on the CPU.
pub type FrozenDdt = Ddt<Frozen>;

impl Ddt {
    /// Parameters under the names of the published checkpoints.
    ///
    /// # Errors
    /// When the sizes make no network ([`DdtConfig::validate`]) or `vb` lacks a parameter.
    pub fn new(cfg: &DdtConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            cfg: cfg.clone().into(),
            encoder: ConditionEncoder::new(cfg, vb.clone())?,
            decoder: VelocityDecoder::new(cfg, vb)?,
        })
    }

    /// An untrained network, the same for the same seed. Its velocity is zero: the final layer starts so.
    ///
    /// # Errors
    /// When the sizes make no network.
    pub fn random(cfg: &DdtConfig, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        Self::new(cfg, VarBuilder::from_backend(Box::new(SeededInit::new(seed)), dtype, device.clone()))
    }

    /// The form for training, which shares the parameters.
    ///
    /// # Errors
    /// Unless weights are f32 on the CPU; train the definition elsewhere.
    pub fn fuse(self) -> Result<TrainingDdt> {
        self.into_form()
    }

    /// The form for sampling. Weights are packed layer by layer, and the originals dropped.
    ///
    /// # Errors
    /// Unless weights are f32 or bf16 on the CPU; sample with the definition elsewhere.
    pub fn freeze(self) -> Result<FrozenDdt> {
        self.into_form()
    }

    pub(crate) fn into_form<F: Form>(self) -> Result<Ddt<F>> {
        let Self { cfg, encoder, decoder } = self;
        Ok(Ddt { cfg, encoder: encoder.into_form()?, decoder: decoder.into_form::<F>()? })
    }
}

impl<F: Form> Ddt<F> {
    /// The velocity at `(x_t, t)` for each label; label `num_classes` is "no class".
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W)`; `t: (B)` f32, 0 for noise and 1 for data; `labels: (B)` u32;
    /// `-> (B, C, H, W)` in f32, whatever the weights' dtype.
    ///
    /// # Errors
    /// On any other shape, and on the CPU for a label above `num_classes`.
    pub fn forward(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let z_t = self.encoder.forward(x_t, t, labels)?;
        self.decoder.forward(x_t, &z_t)
    }

    /// The half that makes a self-condition.
    pub fn encoder(&self) -> &ConditionEncoder<F> {
        &self.encoder
    }

    /// The half that makes a velocity.
    pub fn decoder(&self) -> &VelocityDecoder<F::Block, F::Linear> {
        &self.decoder
    }
}

/// Condition encoder: noisy latent, time and class to the self-condition `z_t` (Eq. 4).
///
/// Differs from DiT: the SiLU is part of the condition, not of the blocks' modulation.
#[derive(Debug, Clone)]
pub struct ConditionEncoder<F: Form = Plain> {
    patch_size: usize,
    rope: AxialRope2d,
    condition: ConditionEmbed,
    s_embedder: PatchEmbed<F::Linear>,
    blocks: Vec<F::Block>,
}

impl ConditionEncoder {
    /// Parameters `t_embedder`, `y_embedder`, `s_embedder` and the first `num_encoder_blocks` `blocks`.
    ///
    /// # Errors
    /// When the sizes make no network or `vb` lacks a parameter.
    pub fn new(cfg: &DdtConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let d = cfg.hidden_size;
        let block = |i| Block::new(d, cfg.num_heads, vb.pp("blocks").pp(i));
        Ok(Self {
            condition: ConditionEmbed::new(cfg.num_classes, d, vb.clone())?,
            s_embedder: PatchEmbed::new(cfg.in_channels, cfg.patch_size, d, vb.pp("s_embedder"))?,
            blocks: (0..cfg.num_encoder_blocks).map(block).collect::<Result<_>>()?,
            patch_size: cfg.patch_size,
            rope: AxialRope2d::new(cfg.head_dim())?,
        })
    }

    pub(crate) fn into_form<F: Form>(self) -> Result<ConditionEncoder<F>> {
        let Self { patch_size, rope, condition, s_embedder, blocks } = self;
        Ok(ConditionEncoder {
            patch_size,
            rope,
            condition: condition.into_form::<F>()?,
            s_embedder: s_embedder.into_form::<F>()?,
            blocks: blocks.into_iter().map(F::block).collect::<Result<_>>()?,
        })
    }
}

impl<F: Form> ConditionEncoder<F> {
    /// The self-condition `z_t`.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W)`; `t: (B)` f32 in [0, 1]; `labels: (B)` u32 in `0..=num_classes`;
    /// `-> (B, L, D)` in the weights' dtype.
    ///
    /// # Errors
    /// On any other shape, and on the CPU for a label outside the table.
    pub fn forward(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(self.forward_with_features(NoisyInput { x_t, t, labels }, 0)?.0)
    }

    /// The self-condition, and the output of encoder block `align_layer` (from 1; 0 is the embedded
    /// latent), before any activation, `(B, L, D)`: what representation alignment projects.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and when there is no such block.
    pub fn forward_with_features(
        &self,
        input: NoisyInput<'_>,
        align_layer: usize,
    ) -> Result<(Tensor, Tensor)> {
        let NoisyInput { x_t, t, labels } = input;
        let (t_emb, y_emb) = self.condition.forward(t, labels)?;
        let c = add_silu(&y_emb, &t_emb)?; // (B, 1, D)
        let xs = self.s_embedder.forward(&x_t.to_dtype(c.dtype())?)?; // (B, L, D)
        let grid = token_grid(self.patch_size, self.rope, x_t)?;
        let (xs, features) = run_blocks(self.blocks.iter(), xs, align_layer, |block, xs| {
            block.forward(xs, &block.modulation(&c)?, &grid)
        })?;
        Ok((add_silu(&xs, &t_emb)?, features))
    }
}

/// Velocity decoder: noisy latent and condition to the velocity (Eq. 5 and Sec. 3.2).
///
/// The condition is a self-condition, one vector per token, in DDT; one vector per image works as well,
/// and makes the decoder the paper's Improved-SiT.
#[derive(Debug, Clone)]
pub struct VelocityDecoder<B = Block, L = Linear> {
    patch_size: usize,
    rope: AxialRope2d,
    x_embedder: PatchEmbed<L>,
    blocks: Vec<B>,
    final_layer: FinalLayer<L>,
}

impl VelocityDecoder {
    /// Parameters `x_embedder`, the last `num_decoder_blocks` `blocks`, and `final_layer`.
    ///
    /// # Errors
    /// When the sizes make no network or `vb` lacks a parameter.
    pub fn new(cfg: &DdtConfig, vb: VarBuilder) -> Result<Self> {
        Self::with_blocks(cfg, |vb| Block::new(cfg.hidden_size, cfg.num_heads, vb), vb)
    }

    pub(crate) fn into_form<F: Form>(self) -> Result<VelocityDecoder<F::Block, F::Linear>> {
        let Self { patch_size, rope, x_embedder, blocks, final_layer } = self;
        Ok(VelocityDecoder {
            patch_size,
            rope,
            x_embedder: x_embedder.into_form::<F>()?,
            blocks: blocks.into_iter().map(F::block).collect::<Result<_>>()?,
            final_layer: final_layer.into_form::<F>()?,
        })
    }
}

impl<B: TransformerBlock> VelocityDecoder<B> {
    /// [`new`](VelocityDecoder::new) with other blocks.
    pub(crate) fn with_blocks(
        cfg: &DdtConfig,
        block: impl Fn(VarBuilder) -> Result<B>,
        vb: VarBuilder,
    ) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let (d, range) = (cfg.hidden_size, cfg.num_encoder_blocks..cfg.num_blocks());
        Ok(Self {
            patch_size: cfg.patch_size,
            rope: AxialRope2d::new(cfg.head_dim())?,
            x_embedder: PatchEmbed::new(cfg.in_channels, cfg.patch_size, d, vb.pp("x_embedder"))?,
            blocks: range.map(|i| block(vb.pp("blocks").pp(i))).collect::<Result<_>>()?,
            final_layer: FinalLayer::new(d, cfg.patch_dim(), vb.pp("final_layer"))?,
        })
    }

    /// The decoder of these layers, whose tokens are single positions of a latent: DiT^DH's.
    pub(crate) fn of_positions(
        rope: AxialRope2d,
        x_embedder: PatchEmbed,
        blocks: Vec<B>,
        final_layer: FinalLayer,
    ) -> Self {
        Self { patch_size: 1, rope, x_embedder, blocks, final_layer }
    }
}

impl<B: TransformerBlock, L: Module> VelocityDecoder<B, L> {
    /// The velocity.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W)`; `condition: (B, L or 1, D)`; `-> (B, C, H, W)` in f32.
    ///
    /// # Errors
    /// On any other shape.
    pub fn forward(&self, x_t: &Tensor, condition: &Tensor) -> Result<Tensor> {
        self.forward_cached(x_t, &self.modulations(condition)?)
    }

    /// The modulations of all layers under `condition`.
    ///
    /// # Errors
    /// On any shape but `(B, L or 1, D)`.
    pub fn modulations(&self, condition: &Tensor) -> Result<DecoderModulations> {
        Ok(DecoderModulations {
            blocks: self.blocks.iter().map(|it| it.modulation(condition)).collect::<Result<_>>()?,
            final_shift_scale: self.final_layer.shift_scale(condition)?.into(),
        })
    }

    /// The velocity under modulations computed before: [`forward`](Self::forward) without its matmuls on the
    /// condition.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W) -> (B, C, H, W)` in f32.
    ///
    /// # Errors
    /// On any other shape, and for modulations of another network or batch.
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
        let (_, _, h, w) = x_t.dims4()?;
        let DecoderModulations { final_shift_scale, .. } = modulations;
        let xs = self.x_embedder.forward(&x_t.to_dtype(final_shift_scale.dtype())?)?; // (B, L, D)
        let grid = token_grid(self.patch_size, self.rope, x_t)?;
        let blocks = modulations.of(&self.blocks)?;
        let (xs, features) = run_blocks(blocks, xs, align_layer, |(block, modulation), xs| {
            block.forward(xs, modulation, &grid)
        })?;
        let patches = self.final_layer.forward(&xs, final_shift_scale.source()?)?.to_dtype(DType::F32)?; // (B, L, C P^2)
        Ok((unpatchify(&patches, self.patch_size, (h, w))?, features))
    }
}

/// The grid of a latent's tokens.
pub(crate) fn token_grid(patch_size: usize, rope: AxialRope2d, x_t: &Tensor) -> Result<TokenGrid> {
    let (_, _, h, w) = x_t.dims4()?;
    TokenGrid::with_rope(h / patch_size, w / patch_size, rope, x_t.device())
}

impl<F: Form> VelocityNetwork for Ddt<F> {
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

impl<F: Form> DecoupledNetwork for Ddt<F> {
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
