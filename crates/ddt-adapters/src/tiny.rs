//! Tiny autoencoders: small convolutional stand-ins for the large ones, 8 times down.
//!
//! The layout is that of the published `taesd` family; pixels inside are in `[0, 1]`.

mod block;
mod config;
mod decoder;
mod encoder;

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;

use crate::autoencoder::Autoencoder;
use crate::load::{LoadError, build};

pub use self::config::TinyConfig;
pub use self::decoder::TinyDecoder;
pub use self::encoder::TinyEncoder;

/// Pixels along a side of one latent position.
const DOWNSCALE: usize = 8;

/// Both halves of a tiny autoencoder.
///
/// ```text
/// latents = encoder((pixels + 1) / 2),   pixels = 2 decoder(latents) - 1
/// ```
#[derive(Debug, Clone)]
pub struct TinyAutoencoder {
    /// Pixels to latents.
    pub encoder: TinyEncoder,
    /// Latents to pixels.
    pub decoder: TinyDecoder,
}

impl TinyAutoencoder {
    /// Makes both halves; `vb` stands where `encoder.` and `decoder.` are.
    ///
    /// # Errors
    ///
    /// A configuration that [`TinyConfig::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &TinyConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            encoder: TinyEncoder::new(cfg, vb.pp("encoder"))?,
            decoder: TinyDecoder::new(cfg, vb.pp("decoder"))?,
        })
    }

    /// Makes both halves, in `f32`, from a source that holds their tensors and no others.
    ///
    /// # Errors
    ///
    /// [`LoadError::Unrecognised`] without a `decoder.1.weight`;
    /// [`CheckpointError::Mismatch`](ddt_files::CheckpointError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load<S>(source: &S, device: &Device) -> std::result::Result<Self, LoadError>
    where
        S: TensorSource + Sync + ?Sized,
    {
        let cfg = TinyConfig::of_decoder(source, "decoder.")?;
        build(source, device, |_| true, |vb| Self::new(&cfg, vb))
    }
}

impl Autoencoder for TinyAutoencoder {
    fn latent_channels(&self) -> usize {
        self.decoder.latent_channels()
    }

    fn downscale(&self) -> usize {
        DOWNSCALE
    }

    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        self.encoder.encode(pixels)
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decoder.decode(latents)
    }
}
