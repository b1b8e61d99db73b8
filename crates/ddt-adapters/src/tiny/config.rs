//! Which member of the family.

use candle_core::{Result, bail};
use ddt_files::TensorSource;
use serde::{Deserialize, Serialize};

use crate::load::LoadError;

/// Which tiny autoencoder: the published ones differ in the latents and in the middle blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TinyConfig {
    /// Channels of the latents: 4, 16 or 32 in the published files.
    pub latent_channels: usize,
    /// Channels between the first and the last convolution: 64 in the published files.
    #[serde(default = "published_width")]
    pub width: usize,
    /// Whether the blocks at latent resolution have normalised 1x1 convolutions (`pool`).
    pub mid_pool: bool,
}

impl TinyConfig {
    /// For Stable Diffusion's latents, such as DDT's: 4 channels.
    pub fn sd() -> Self {
        Self { latent_channels: 4, width: published_width(), mid_pool: false }
    }

    /// For the latents of Stable Diffusion 3 and FLUX.1: 16 channels.
    pub fn sd3() -> Self {
        Self { latent_channels: 16, ..Self::sd() }
    }

    /// For FLUX.2's latents: 32 channels.
    pub fn flux_2() -> Self {
        Self { latent_channels: 32, mid_pool: true, ..Self::sd() }
    }

    /// Says what is wrong with this configuration, if anything.
    ///
    /// # Errors
    ///
    /// Latent channels or a width of zero or beyond 65536.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [("latent_channels", self.latent_channels), ("width", self.width)] {
            if !(1..=65536).contains(&value) {
                bail!("{name}: expected 1 to 65536, got {value}");
            }
        }
        Ok(())
    }

    /// What the decoder in `source` is, its names beginning with `prefix`.
    pub(super) fn of_decoder<S: TensorSource + ?Sized>(
        source: &S,
        prefix: &str,
    ) -> std::result::Result<Self, LoadError> {
        let Some([width, latent_channels]) = channels(source, &format!("{prefix}1.weight")) else {
            let expected = "decoder.1.weight (or 1.weight) of 4 dimensions";
            return Err(unrecognised("tiny decoder", expected, source));
        };
        let mid_pool = source.info(&format!("{prefix}3.pool.0.weight")).is_some();
        Ok(Self { latent_channels, width, mid_pool })
    }

    /// What the encoder in `source` is, its names beginning with `prefix`.
    pub(super) fn of_encoder<S: TensorSource + ?Sized>(
        source: &S,
        prefix: &str,
    ) -> std::result::Result<Self, LoadError> {
        let Some([latent_channels, width]) = channels(source, &format!("{prefix}14.weight")) else {
            let expected = "encoder.14.weight (or 14.weight) of 4 dimensions";
            return Err(unrecognised("tiny encoder", expected, source));
        };
        let mid_pool = source.info(&format!("{prefix}11.pool.0.weight")).is_some();
        Ok(Self { latent_channels, width, mid_pool })
    }
}

fn published_width() -> usize {
    64
}

/// `prefix` if any name has it, otherwise nothing: the published files of one half have bare names.
pub(super) fn prefix_in<S: TensorSource + ?Sized>(source: &S, prefix: &'static str) -> &'static str {
    if source.names().iter().any(|name| name.starts_with(prefix)) { prefix } else { "" }
}

/// Output and input channels of a convolution.
fn channels<S: TensorSource + ?Sized>(source: &S, name: &str) -> Option<[usize; 2]> {
    match *source.info(name)?.shape {
        [out, inp, _, _] => Some([out, inp]),
        _ => None,
    }
}

fn unrecognised<S: TensorSource + ?Sized>(
    network: &'static str,
    expected: &'static str,
    source: &S,
) -> LoadError {
    let names = source.names();
    let first = names.get(..3).unwrap_or(&names).join(", ");
    let got = format!("{} tensors in {} ({first}, ..)", names.len(), source.path().display());
    LoadError::Unrecognised { network, expected, got }
}
