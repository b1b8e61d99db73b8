//! The decoding half of Stable Diffusion's autoencoder.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;

use super::KlConfig;
use super::decoder::Decoder;
use crate::autoencoder::{Autoencoder, check_latents, in_batches};
use crate::conv::{Conv2d, Geometry};
use crate::load::{LoadError, build};

/// The decoder of Stable Diffusion's autoencoder, usable alone: sampling needs no encoder.
///
/// ```text
/// pixels = decode(latents / scaling_factor)
/// ```
///
/// Computes in the type of its weights; takes and gives `f32`.
/// As an [`Autoencoder`] it decodes, and refuses to encode.
#[derive(Debug, Clone)]
pub struct KlDecoder {
    decoder: Decoder,
    post_quant_conv: Conv2d,
    cfg: KlConfig,
    dtype: DType,
}

impl KlDecoder {
    /// Makes the decoder; `vb` stands where `decoder.` and `post_quant_conv.` are.
    ///
    /// # Errors
    ///
    /// A configuration that [`KlConfig::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &KlConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate()?;
        let channels = cfg.latent_channels;
        Ok(Self {
            decoder: Decoder::new(cfg, vb.pp("decoder"))?,
            post_quant_conv: Conv2d::new(channels, channels, Geometry::POINT, vb.pp("post_quant_conv"))?,
            cfg: cfg.clone(),
            dtype: vb.dtype(),
        })
    }

    /// Makes the decoder, in `f32`, from a source that holds its tensors.
    ///
    /// A source with both halves will do: `encoder.*` and `quant_conv.*` are passed over, and not read.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Mismatch`](ddt_files::CheckpointError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load<S>(cfg: &KlConfig, source: &S, device: &Device) -> std::result::Result<Self, LoadError>
    where
        S: TensorSource + Sync + ?Sized,
    {
        let ours = |name: &str| !name.starts_with("encoder.") && !name.starts_with("quant_conv.");
        build(source, device, ours, |vb| Self::new(cfg, vb))
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &KlConfig {
        &self.cfg
    }

    /// All that it computes with, by the names of the published file.
    pub fn parameters(&self) -> BTreeMap<String, Tensor> {
        let mut all = BTreeMap::new();
        self.post_quant_conv.parameters("post_quant_conv", &mut all);
        self.decoder.parameters("decoder", &mut all);
        all
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
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
}

impl Autoencoder for KlDecoder {
    fn latent_channels(&self) -> usize {
        self.cfg.latent_channels
    }

    fn downscale(&self) -> usize {
        self.cfg.downscale()
    }

    fn encode(&self, _: &Tensor) -> Result<Tensor> {
        bail!("expected an autoencoder with an encoder, got a decoder alone; load a KlAutoencoder")
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decode_raw(&(latents.to_dtype(DType::F32)? / self.cfg.scaling_factor)?)
    }
}
