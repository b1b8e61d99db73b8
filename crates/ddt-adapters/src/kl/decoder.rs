//! Latents to pixels.

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;
use ddt_kernels::{Activation, Window2d};

use super::blocks::{MidBlock, Stage, norm};
use super::config::KlConfig;
use crate::autoencoder::{Decode, LatentSpace, check_latents, in_batches};
use crate::layers::{Conv2d, GroupNorm, stream_dtype, unrounded};
use crate::load::{LoadError, load_network};

/// The decoder of Stable Diffusion's autoencoder; sampling needs no encoder.
///
/// ```text
/// post_quant_conv, conv_in, mid_block, up_blocks, silu(conv_norm_out), conv_out
/// ```
///
/// Multiplies in the type of its weights, sums in `f32`; takes and gives `f32`.
#[derive(Debug, Clone)]
pub struct KlDecoder {
    post_quant_conv: Conv2d,
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<Stage>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    cfg: KlConfig,
    /// Dtype of the tensors between layers.
    dtype: DType,
}

impl KlDecoder {
    /// Builds the decoder; `vb` is the root of the file's names, above `decoder.` and `post_quant_conv.`.
    ///
    /// # Errors
    /// A configuration that [`KlConfig::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &KlConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate()?;
        let (top, bottom, latent) = (cfg.top_channels(), cfg.bottom_channels(), cfg.latent_channels);
        let post_quant_conv =
            Conv2d::new(latent, latent, Window2d::POINT, unrounded(&vb).pp("post_quant_conv"))?;
        let (dtype, vb) = (stream_dtype(&vb), vb.pp("decoder"));
        let ends = unrounded(&vb);
        let last = cfg.block_out_channels.len() - 1;
        let mut inp = bottom;
        let mut up_blocks = Vec::new();
        for (i, &channels) in cfg.block_out_channels.iter().rev().enumerate() {
            let vb = vb.pp("up_blocks").pp(i);
            let stage = Stage::new(cfg, inp, channels, cfg.layers_per_block + 1, vb.clone())?;
            up_blocks.push(if i == last {
                stage
            } else {
                stage.then(Conv2d::upsampling(channels, channels, vb.pp("upsamplers.0.conv"))?)
            });
            inp = channels;
        }
        Ok(Self {
            post_quant_conv,
            conv_in: Conv2d::new(latent, bottom, Window2d::SAME_3, ends.pp("conv_in"))?,
            // 4 % of the work, and all that follows depends on it.
            mid_block: MidBlock::new(cfg, ends.pp("mid_block"))?,
            up_blocks,
            conv_norm_out: norm(cfg, top, ends.pp("conv_norm_out"))?.then(Activation::Silu),
            conv_out: Conv2d::new(top, 3, Window2d::SAME_3, ends.pp("conv_out"))?,
            cfg: cfg.clone(),
            dtype,
        })
    }

    /// Builds the decoder in `dtype` from a source that holds its tensors; `encoder.*` and `quant_conv.*` may be
    /// there too, and are not read.
    ///
    /// # Errors
    /// [`FileError::Mismatch`](ddt_files::FileError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load(
        cfg: &KlConfig,
        source: &(impl TensorSource + Sync + ?Sized),
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        load_network(source, dtype, device, Self::reads, |vb| Self::new(cfg, vb))
    }

    /// Whether a tensor of this name may be the decoder's, in a file of the whole autoencoder.
    pub fn reads(name: &str) -> bool {
        !name.starts_with("encoder.") && !name.starts_with("quant_conv.")
    }

    /// The configuration that it was built with.
    pub fn config(&self) -> &KlConfig {
        &self.cfg
    }

    /// Pixels of unscaled latents.
    ///
    /// # Shapes
    /// `(B, C, H, W) -> (B, 3, f H, f W)`
    ///
    /// # Errors
    /// Any other shape.
    pub fn decode_raw(&self, latents: &Tensor) -> Result<Tensor> {
        check_latents(latents, self.cfg.latent_channels)?;
        let pixels_per_position = self.downscale() * self.downscale();
        in_batches(latents, self.dtype, pixels_per_position, |xs| self.pixels(xs))
    }

    /// `(B, H, W, C) -> (B, f H, f W, 3)`
    fn pixels(&self, latents: &Tensor) -> Result<Tensor> {
        let xs = self.conv_in.forward(&self.post_quant_conv.forward(latents)?)?;
        let mut xs = self.mid_block.forward(&xs)?;
        for stage in &self.up_blocks {
            xs = stage.run(xs)?;
        }
        self.conv_out.forward(&self.conv_norm_out.forward(&xs)?)
    }
}

impl LatentSpace for KlDecoder {
    fn latent_channels(&self) -> usize {
        self.cfg.latent_channels
    }

    fn downscale(&self) -> usize {
        self.cfg.downscale()
    }
}

impl Decode for KlDecoder {
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decode_raw(&(latents.to_dtype(DType::F32)? / self.cfg.scaling_factor)?)
    }
}
