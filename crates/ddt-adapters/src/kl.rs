//! Stable Diffusion's KL autoencoder, frozen.
//!
//! Names are those of the published files, with the attention's new names (`to_q`, `to_k`, `to_v`,
//! `to_out.0`) or its old ones (`query`, `key`, `value`, `proj_attn`).

mod attention;
mod config;
mod decoder;
mod encoder;
mod mid_block;
mod posterior;
mod resnet;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_checkpoint::TensorSource;

use self::decoder::Decoder;
use self::encoder::Encoder;
use crate::autoencoder::{Autoencoder, check_latents, check_pixels, in_batches};
use crate::conv::{Conv2d, Geometry};
use crate::load::{LoadError, build};

pub use self::config::KlConfig;
pub use self::posterior::Posterior;

/// Stable Diffusion's autoencoder: 3 channels in `[-1, 1]` to a normal distribution, and back.
///
/// ```text
/// latents = scaling_factor * sample,   pixels = decode(latents / scaling_factor)
/// ```
///
/// Computes in the type of its weights; takes and gives `f32`.
#[derive(Debug, Clone)]
pub struct KlAutoencoder {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
    cfg: KlConfig,
    dtype: DType,
}

impl KlAutoencoder {
    /// Makes the network from named tensors; `vb` stands where `encoder.` and `decoder.` are.
    ///
    /// # Errors
    ///
    /// A configuration that [`KlConfig::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &KlConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate()?;
        let moments = 2 * cfg.latent_channels;
        Ok(Self {
            encoder: Encoder::new(cfg, vb.pp("encoder"))?,
            decoder: Decoder::new(cfg, vb.pp("decoder"))?,
            quant_conv: Conv2d::new(moments, moments, Geometry::POINT, vb.pp("quant_conv"))?,
            post_quant_conv: Conv2d::new(
                cfg.latent_channels,
                cfg.latent_channels,
                Geometry::POINT,
                vb.pp("post_quant_conv"),
            )?,
            cfg: cfg.clone(),
            dtype: vb.dtype(),
        })
    }

    /// Makes the network, in `f32`, from a source that holds its tensors and no others.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Mismatch`](ddt_checkpoint::CheckpointError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load<S>(cfg: &KlConfig, source: &S, device: &Device) -> std::result::Result<Self, LoadError>
    where
        S: TensorSource + Sync + ?Sized,
    {
        build(source, device, |_| true, |vb| Self::new(cfg, vb))
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &KlConfig {
        &self.cfg
    }

    /// The distribution of the unscaled latents of some images.
    ///
    /// # Shapes
    ///
    /// `pixels: (B, 3, f H, f W)` in `[-1, 1]`; mean and log-variance `(B, C, H, W)`, `f32`.
    ///
    /// # Errors
    ///
    /// Any other shape.
    pub fn posterior(&self, pixels: &Tensor) -> Result<Posterior> {
        check_pixels(pixels, self.downscale())?;
        let moments =
            in_batches(pixels, self.dtype, 1, |xs| self.quant_conv.forward(&self.encoder.forward(xs)?))?;
        Posterior::from_moments(&moments)
    }

    /// Pixels of unscaled latents.
    ///
    /// # Shapes
    ///
    /// `(B, C, H, W) -> (B, 3, f H, f W)`
    ///
    /// # Errors
    ///
    /// Any other shape.
    pub fn decode_raw(&self, latents: &Tensor) -> Result<Tensor> {
        check_latents(latents, self.cfg.latent_channels)?;
        let pixels_per_position = self.downscale() * self.downscale();
        in_batches(latents, self.dtype, pixels_per_position, |xs| {
            self.decoder.forward(&self.post_quant_conv.forward(xs)?)
        })
    }

    /// Scaled latents drawn from the posterior, as a network is trained on them.
    ///
    /// # Shapes
    ///
    /// `pixels: (B, 3, f H, f W)`, `noise: (B, C, H, W)` standard normal, `-> (B, C, H, W)`
    ///
    /// # Errors
    ///
    /// Any other shape.
    pub fn encode_sampled(&self, pixels: &Tensor, noise: &Tensor) -> Result<Tensor> {
        self.posterior(pixels)?.sample(noise)? * self.cfg.scaling_factor
    }
}

impl Autoencoder for KlAutoencoder {
    fn latent_channels(&self) -> usize {
        self.cfg.latent_channels
    }

    fn downscale(&self) -> usize {
        self.cfg.downscale()
    }

    /// The posterior's mean, scaled; see [`KlAutoencoder::encode_sampled`] for a draw.
    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        self.posterior(pixels)?.mean * self.cfg.scaling_factor
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decode_raw(&(latents.to_dtype(DType::F32)? / self.cfg.scaling_factor)?)
    }
}
