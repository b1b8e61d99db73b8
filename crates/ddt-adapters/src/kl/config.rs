//! Sizes of Stable Diffusion's KL autoencoder.

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::load::check_sizes;

/// Sizes of a [`KlAutoencoder`](super::KlAutoencoder), named as in the published `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KlConfig {
    /// Channels of each resolution, the highest first; each but the last is followed by a downsampling.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a resolution in the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of every normalisation; divides every channel count.
    pub norm_num_groups: usize,
    /// Latents are the posterior's sample times this (unitless).
    pub scaling_factor: f64,
}

impl KlConfig {
    /// Added to the variance in every normalisation.
    pub const NORM_EPS: f64 = 1e-6;

    /// `stabilityai/sd-vae-ft-ema`, DDT's autoencoder: 4 channels, 8x down.
    pub fn sd_vae_ft_ema() -> Self {
        Self {
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
        }
    }

    /// Pixels along a side of one latent position: `2^(resolutions - 1)`.
    pub fn downscale(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1).min(usize::BITS as usize - 1)
    }

    /// Refuses sizes that no autoencoder has.
    ///
    /// # Errors
    /// No resolutions or more than 16, sizes of zero or beyond 65536, channels that the groups do
    /// not divide, a scaling factor that is not positive and finite.
    pub fn validate(&self) -> Result<()> {
        let resolutions = self.block_out_channels.len();
        if !(1..=16).contains(&resolutions) {
            bail!("block_out_channels: expected 1 to 16 resolutions, got {resolutions}");
        }
        let sizes = [
            ("layers_per_block", self.layers_per_block),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
        ];
        let channels = self.block_out_channels.iter().map(|&c| ("block_out_channels", c));
        check_sizes(sizes.into_iter().chain(channels))?;
        let groups = self.norm_num_groups;
        if let Some(channels) = self.block_out_channels.iter().find(|&c| c % groups != 0) {
            bail!("block_out_channels: expected multiples of norm_num_groups ({groups}), got {channels}");
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            bail!("scaling_factor: expected a positive number, got {}", self.scaling_factor);
        }
        Ok(())
    }

    /// Channels of the lowest resolution, that of the latents.
    pub(super) fn bottom_channels(&self) -> usize {
        self.block_out_channels.last().copied().unwrap_or_default()
    }

    /// Channels of the highest resolution, that of the pixels.
    pub(super) fn top_channels(&self) -> usize {
        self.block_out_channels.first().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preset_is_valid_and_eight_times_down() {
        let cfg = KlConfig::sd_vae_ft_ema();
        cfg.validate().unwrap();
        assert_eq!(cfg.downscale(), 8);
    }

    #[test]
    fn nonsense_is_refused() {
        let good = KlConfig::sd_vae_ft_ema();
        let bad = [
            KlConfig { block_out_channels: vec![], ..good.clone() },
            KlConfig { block_out_channels: vec![32; 17], ..good.clone() },
            KlConfig { block_out_channels: vec![32, 33], ..good.clone() },
            KlConfig { block_out_channels: vec![0], ..good.clone() },
            KlConfig { layers_per_block: 0, ..good.clone() },
            KlConfig { latent_channels: usize::MAX, ..good.clone() },
            KlConfig { norm_num_groups: 0, ..good.clone() },
            KlConfig { scaling_factor: f64::NAN, ..good.clone() },
            KlConfig { scaling_factor: 0.0, ..good },
        ];
        for cfg in bad {
            assert!(cfg.validate().is_err(), "{cfg:?}");
        }
    }
}
