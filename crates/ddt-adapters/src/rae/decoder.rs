//! Normalised features to pixels, by a vision transformer.

use candle_core::{DType, Device, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;

use super::config::{NORM_EPS, RaeDecoderConfig};
use super::statistics::RaeStatistics;
use crate::autoencoder::{Decode, LatentSpace, check_latents, in_batches};
use crate::dinov2::{MEAN, STD};
use crate::layers::{LayerNorm, Linear, stream_dtype, unrounded};
use crate::load::{LoadError, load_network};
use crate::resize::{Interpolation, resize};
use crate::vit::{Block, BlockNames, BlockSizes, MlpNames};

/// Names of a block's tensors: those of transformers' ViT-MAE, which the published decoder is made of.
const BLOCK: BlockNames = BlockNames {
    norm1: "layernorm_before",
    qkv: &["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    proj: "attention.output.dense",
    norm2: "layernorm_after",
    mlp: MlpNames::Gelu(["intermediate.dense", "output.dense"]),
    scales: None,
};

/// Pixels that [`in_batches`] counts for a position: 16 images of 16 x 16 tokens pass through at once.
const PIXELS_PER_POSITION: usize = 4;

/// The decoder of a representation autoencoder; sampling needs no encoder.
///
/// ```text
/// tokens = [class, decoder_embed(f)] + positions,   then blocks, norm, decoder_pred; a token is a patch of pixels
/// ```
///
/// Multiplies in the type of its weights, sums in `f32`; takes and gives `f32`, a few images at a time.
#[derive(Debug, Clone)]
pub struct RaeDecoder {
    embed: Linear,
    /// Class token plus its position, `(1, 1, W)`.
    class_token: Tensor,
    /// `(1, n n, W)`.
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    /// Tokens to pixels in `[0, 1]`; ImageNet's mean and standard deviation are folded in.
    pred: Linear,
    statistics: Option<RaeStatistics>,
    cfg: RaeDecoderConfig,
    /// Dtype of the tensors between layers.
    dtype: DType,
}

impl RaeDecoder {
    /// Builds the decoder; `vb` is where `decoder_embed.weight` is. Without statistics latents are the features.
    ///
    /// # Errors
    /// A configuration that [`RaeDecoderConfig::validate`] refuses; statistics of another size; the first missing or
    /// misshapen tensor.
    pub fn new(cfg: &RaeDecoderConfig, statistics: Option<RaeStatistics>, vb: VarBuilder) -> Result<Self> {
        cfg.validate()?;
        if let Some(it) = &statistics {
            it.check(cfg.latent_channels, cfg.grid)?;
        }
        let (width, count) = (cfg.hidden_size, cfg.grid * cfg.grid);
        let sizes =
            BlockSizes { width, num_heads: cfg.num_heads, mlp_width: cfg.mlp_width, norm_eps: NORM_EPS };
        let (ends, layers) = (unrounded(&vb), vb.pp("decoder_layers"));
        let positions = ends.get((1, 1 + count, width), "decoder_pos_embed")?;
        let class_token = ends.get((1, 1, width), "trainable_cls_token")?;
        let block = |i: usize| Block::new(&sizes, &BLOCK, layers.pp(i));
        Ok(Self {
            embed: Linear::new(cfg.latent_channels, width, ends.pp("decoder_embed"))?,
            class_token: (class_token + positions.narrow(1, 0, 1)?)?,
            positions: positions.narrow(1, 1, count)?.contiguous()?,
            blocks: (0..cfg.num_blocks).map(block).collect::<Result<_>>()?,
            norm: LayerNorm::new(width, NORM_EPS, ends.pp("decoder_norm"))?,
            pred: pixel_layer(cfg, ends.pp("decoder_pred"))?,
            statistics,
            cfg: cfg.clone(),
            dtype: stream_dtype(&vb),
        })
    }

    /// Builds the decoder in `dtype` from a source with its tensors; others than further blocks are not read, as
    /// published files may have them.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`FileError::Mismatch`](ddt_files::FileError::Mismatch) with every missing, unexpected
    /// and misshapen name.
    pub fn load(
        cfg: &RaeDecoderConfig,
        source: &(impl TensorSource + Sync + ?Sized),
        statistics: Option<RaeStatistics>,
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let wanted = |name: &str| name.starts_with("decoder_layers.");
        load_network(source, dtype, device, wanted, |vb| Self::new(cfg, statistics, vb))
    }

    /// The configuration that it was built with.
    pub fn config(&self) -> &RaeDecoderConfig {
        &self.cfg
    }

    /// DINOv2's features that latents stand for.
    ///
    /// # Shapes
    /// `(B, C, H, W) -> same`, `f32`; H = W = n where there are statistics
    ///
    /// # Errors
    /// Any other shape, and a latent that is NaN or infinite.
    pub fn features(&self, latents: &Tensor) -> Result<Tensor> {
        check_latents(latents, self.cfg.latent_channels)?;
        let latents = latents.to_dtype(DType::F32)?;
        match &self.statistics {
            Some(it) => {
                self.check_grid(&latents)?;
                it.denormalise(&latents)
            }
            None => Ok(latents),
        }
    }

    /// Pixels in `[0, 1]`, not clamped. Without statistics the latents may have any grid: tokens are resized to the
    /// trained one, bilinearly, so the images keep their size.
    ///
    /// # Shapes
    /// `(B, C, H, W) -> (B, 3, n p, n p)`
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn decode_raw(&self, latents: &Tensor) -> Result<Tensor> {
        self.finished(&self.features(latents)?, Ok)
    }

    /// `finish` of the pixels, `(B, n p, n p, 3)` in memory.
    fn finished(&self, features: &Tensor, finish: impl Fn(Tensor) -> Result<Tensor>) -> Result<Tensor> {
        in_batches(features, self.dtype, PIXELS_PER_POSITION, |xs| finish(self.pixels(xs)?))
    }

    fn check_grid(&self, latents: &Tensor) -> Result<()> {
        let n = self.cfg.grid;
        if latents.dims()[2..] != [n, n] {
            bail!("expected latents (B, {}, {n}, {n}), got {:?}", self.cfg.latent_channels, latents.shape());
        }
        Ok(())
    }

    /// `(B, H, W, C) -> (B, n p, n p, 3)`
    fn pixels(&self, features: &Tensor) -> Result<Tensor> {
        let patches = self.on_grid(&self.embed.forward(features)?)?.broadcast_add(&self.positions)?;
        let (b, count, width) = patches.dims3()?;
        let mut xs = Tensor::cat(&[&self.class_token.broadcast_as((b, 1, width))?, &patches], 1)?;
        for block in &self.blocks {
            xs = block.forward(&xs)?;
        }
        let patches = self.norm.forward(&xs.narrow(1, 1, count)?.contiguous()?)?;
        let (n, p) = (self.cfg.grid, self.cfg.patch_size);
        let pixels = self.pred.forward(&patches)?.reshape(vec![b, n, n, p, p, 3])?;
        pixels.permute(vec![0, 1, 3, 2, 4, 5])?.reshape((b, n * p, n * p, 3))
    }

    /// Tokens on the trained grid: `(B, H, W, D) -> (B, n n, D)`.
    fn on_grid(&self, tokens: &Tensor) -> Result<Tensor> {
        let ((b, h, w, width), n) = (tokens.dims4()?, self.cfg.grid);
        if (h, w) == (n, n) {
            return tokens.flatten(1, 2);
        }
        let planes = tokens.permute((0, 3, 1, 2))?.reshape((b * width, h, w))?.to_dtype(DType::F32)?;
        let planes = resize(&planes, (n, n), Interpolation::Bilinear)?.reshape((b, width, n * n))?;
        planes.transpose(1, 2)?.contiguous()?.to_dtype(tokens.dtype())
    }
}

/// `decoder_pred` and what makes pixels of its results, (row, column, colour) in a patch: `x std + mean`.
fn pixel_layer(cfg: &RaeDecoderConfig, vb: VarBuilder) -> Result<Linear> {
    let outputs = 3 * cfg.patch_size * cfg.patch_size;
    let (weight, bias) = (vb.get((outputs, cfg.hidden_size), "weight")?, vb.get(outputs, "bias")?);
    let colours =
        |values: [f32; 3]| Tensor::new(&values, vb.device())?.to_dtype(vb.dtype())?.repeat(outputs / 3);
    let (mean, std) = (colours(MEAN)?, colours(STD)?);
    Linear::of(&weight.broadcast_mul(&std.unsqueeze(1)?)?, Some(&((bias * std)? + mean)?))
}

impl LatentSpace for RaeDecoder {
    fn latent_channels(&self) -> usize {
        self.cfg.latent_channels
    }

    fn downscale(&self) -> usize {
        self.cfg.patch_size
    }
}

impl Decode for RaeDecoder {
    /// Takes latents on the trained grid; [`RaeDecoder::decode_raw`] takes others.
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let features = self.features(latents)?;
        self.check_grid(&features)?;
        self.finished(&features, |pixels| pixels.affine(2.0, -1.0))
    }
}
