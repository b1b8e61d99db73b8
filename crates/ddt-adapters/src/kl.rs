//! Stable Diffusion's KL autoencoder, frozen.
//!
//! Follows [`AutoencoderKL`] of diffusers and keeps the names of its files, with the attention's newer names
//! (`to_q`, `to_k`, `to_v`, `to_out.0`) or its older ones (`query`, `key`, `value`, `proj_attn`).
//!
//! [`AutoencoderKL`]: https://github.com/huggingface/diffusers/blob/9578d7e80409e05b031ba5ff664242744fb528f4/src/diffusers/models/autoencoders/vae.py

mod blocks;
mod config;
mod decoder;
mod encoder;

use candle_core::{DType, Device, Result};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;

use crate::autoencoder::Autoencoder;
use crate::load::{LoadError, load_network};

pub use self::config::KlConfig;
pub use self::decoder::KlDecoder;
pub use self::encoder::{KlEncoder, Posterior};

/// Both halves of Stable Diffusion's autoencoder: 3 channels in `[-1, 1]` to a normal distribution, and back.
///
/// ```text
/// latents = scaling_factor * sample,   pixels = decode(latents / scaling_factor)
/// ```
///
/// Multiplies in the type of its weights, sums in `f32`; takes and gives `f32`.
pub type KlAutoencoder = Autoencoder<KlEncoder, KlDecoder>;

impl KlAutoencoder {
    /// Builds both halves; `vb` is the root of the file's names, above `encoder.` and `decoder.`.
    ///
    /// # Errors
    /// A configuration that [`KlConfig::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &KlConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self { encoder: KlEncoder::new(cfg, vb.clone())?, decoder: KlDecoder::new(cfg, vb)? })
    }

    /// Builds both halves in `dtype` from a source that holds their tensors and no others.
    ///
    /// [`KlEncoder::load`] and [`KlDecoder::load`] read one half each.
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
        load_network(source, dtype, device, |_| true, |vb| Self::new(cfg, vb))
    }
}
