//! Stable Diffusion's KL autoencoder, frozen.
//!
//! Names are those of the published files, with the attention's new names (`to_q`, `to_k`, `to_v`,
//! `to_out.0`) or its old ones (`query`, `key`, `value`, `proj_attn`).

mod attention;
mod config;
mod decoder;
mod decoder_alone;
mod encoder;
mod mid_block;
mod posterior;
mod resnet;

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;

use self::encoder::Encoder;
use crate::autoencoder::{Autoencoder, check_pixels, in_batches};
use crate::conv::{Conv2d, Geometry};
use crate::load::{LoadError, build};

pub use self::config::KlConfig;
pub use self::decoder_alone::KlDecoder;
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
    quant_conv: Conv2d,
    decoder: KlDecoder,
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
            quant_conv: Conv2d::new(moments, moments, Geometry::POINT, vb.pp("quant_conv"))?,
            decoder: KlDecoder::new(cfg, vb)?,
        })
    }

    /// Makes the network, in `f32`, from a source that holds its tensors and no others.
    ///
    /// Where only latents are decoded, [`KlDecoder::load`] reads half as much.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Mismatch`](ddt_files::CheckpointError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load<S>(cfg: &KlConfig, source: &S, device: &Device) -> std::result::Result<Self, LoadError>
    where
        S: TensorSource + Sync + ?Sized,
    {
        build(source, device, |_| true, |vb| Self::new(cfg, vb))
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &KlConfig {
        self.decoder.config()
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
        let moments = in_batches(pixels, self.decoder.dtype(), 1, |xs| {
            self.quant_conv.forward(&self.encoder.forward(xs)?)
        })?;
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
        self.decoder.decode_raw(latents)
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
        self.posterior(pixels)?.sample(noise)? * self.config().scaling_factor
    }
}

impl Autoencoder for KlAutoencoder {
    fn latent_channels(&self) -> usize {
        self.decoder.latent_channels()
    }

    fn downscale(&self) -> usize {
        self.decoder.downscale()
    }

    /// The posterior's mean, scaled; see [`KlAutoencoder::encode_sampled`] for a draw.
    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        self.posterior(pixels)?.mean * self.config().scaling_factor
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decoder.decode(latents)
    }
}
