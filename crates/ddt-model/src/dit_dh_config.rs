//! Sizes of a DiT^DH: the published ones, what makes a network, and what a step of one costs.

use ddt_sharing::OperationCounts;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, DdtConfig};

/// Settings of a [`DitDh`](crate::DitDh) beside its [`DdtConfig`], whose width and heads are the encoder's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DitDhConfig {
    /// Channels of the decoder's tokens.
    pub decoder_hidden_size: usize,
    /// Attention heads of the decoder; each has a multiple of 4 channels.
    pub decoder_num_heads: usize,
    /// Inner size of an MLP without a gate over the width; the gated MLP has two thirds of it, rounded down.
    #[serde(default = "four")]
    pub mlp_ratio: f64,
    /// Whether queries and keys have norms.
    #[serde(default)]
    pub qk_norm: bool,
    /// Whether positions are added to the encoder's tokens.
    #[serde(default = "yes")]
    pub positions: bool,
    /// Whether there is a label for "no class".
    #[serde(default = "yes")]
    pub null_class: bool,
}

fn four() -> f64 {
    4.0
}

fn yes() -> bool {
    true
}

/// Name, encoder width, blocks and heads. S and XL are published; B and L have the sizes of the SiT of their names.
const SIZES: [(&str, usize, usize, usize); 4] =
    [("s", 384, 12, 6), ("b", 768, 12, 12), ("l", 1024, 24, 16), ("xl", 1152, 28, 16)];

/// Name of a resolution, and tokens along either side.
const SIDES: [(&str, usize); 2] = [("256", 16), ("512", 32)];

impl DitDhConfig {
    /// The published decoder: two blocks of 2048 channels and 16 heads.
    pub const PUBLISHED: Self = Self {
        decoder_hidden_size: 2048,
        decoder_num_heads: 16,
        mlp_ratio: 4.0,
        qk_norm: false,
        positions: true,
        null_class: true,
    };

    /// The sizes and the tokens along either side of `ditdh-{s,b,l,xl}-{256,512}`, for latents of 768 channels of a
    /// representation autoencoder on DINOv2-B.
    pub(crate) fn preset(name: &str) -> Option<(DdtConfig, usize)> {
        let (size, side) = name.strip_prefix("ditdh-")?.split_once('-')?;
        let (_, hidden_size, num_encoder_blocks, num_heads) = *SIZES.iter().find(|it| it.0 == size)?;
        let grid_side = SIDES.iter().find(|it| it.0 == side)?.1;
        let sizes = DdtConfig {
            in_channels: 768,
            patch_size: 1,
            hidden_size,
            num_heads,
            num_encoder_blocks,
            num_decoder_blocks: 2,
            num_classes: 1000,
        };
        Some((sizes, grid_side))
    }

    /// The names that [`preset`](Self::preset) knows.
    pub(crate) fn preset_names() -> impl Iterator<Item = String> {
        SIDES.iter().flat_map(|side| SIZES.iter().map(move |size| format!("ditdh-{}-{}", size.0, side.0)))
    }

    /// Inner size of the gated MLP of blocks of a width.
    pub fn mlp_size(&self, hidden_size: usize) -> usize {
        // As Python computes it.
        (2.0 / 3.0 * (hidden_size as f64 * self.mlp_ratio).floor()).floor() as usize
    }

    /// Rows of the label table.
    pub fn num_labels(&self, sizes: &DdtConfig) -> usize {
        sizes.num_classes + usize::from(self.null_class)
    }

    /// Channels of a decoder head; 0 without heads.
    pub fn decoder_head_dim(&self) -> usize {
        self.decoder_hidden_size.checked_div(self.decoder_num_heads).unwrap_or(0)
    }

    /// Checks that these settings make a network with `sizes`, which are valid.
    pub(crate) fn validate(&self, sizes: &DdtConfig) -> Result<(), ConfigError> {
        let (width, heads) = (self.decoder_hidden_size, self.decoder_num_heads);
        if !(1..=1 << 14).contains(&heads) {
            return Err(ConfigError::size("decoder_num_heads", "1 to 16384", heads));
        }
        if !(4..=1 << 16).contains(&width) || !width.is_multiple_of(4 * heads) {
            let expected = format!("4 to 65536 and a multiple of 4 x {heads} heads");
            return Err(ConfigError::size("decoder_hidden_size", &expected, width));
        }
        if !(1.0..=64.0).contains(&self.mlp_ratio) {
            return Err(ConfigError::new(format!("mlp_ratio is {}, expected 1 to 64", self.mlp_ratio)));
        }
        if sizes.patch_size != 1 {
            return Err(ConfigError::size("patch_size", "1 in family dit-dh", sizes.patch_size));
        }
        Ok(())
    }

    /// [`DdtConfig::operation_counts`] of a DiT^DH of `tokens`.
    pub(crate) fn operation_counts(&self, sizes: &DdtConfig, tokens: usize) -> OperationCounts {
        let (l, e, c) = (tokens as f64, sizes.hidden_size as f64, self.decoder_hidden_size as f64);
        let channels = sizes.in_channels as f64;
        let block = |width: usize| {
            let (d, hidden) = (width as f64, self.mlp_size(width) as f64);
            l * (4.0 * d * d + 2.0 * l * d + 3.0 * d * hidden)
        };
        let (encoder_blocks, decoder_blocks) =
            (sizes.num_encoder_blocks as f64, sizes.num_decoder_blocks as f64);
        let timestep = 512.0 * e + e * e;
        let encoder = timestep + l * channels * e + encoder_blocks * (block(sizes.hidden_size) + 6.0 * e * e);
        let cached = 2.0 * l * channels * c + decoder_blocks * block(self.decoder_hidden_size);
        let projector = if sizes.hidden_size == self.decoder_hidden_size { 0.0 } else { e * c };
        let modulations = l * (projector + c * c * (6.0 * decoder_blocks + 2.0));
        OperationCounts {
            encoder: 2.0 * encoder,
            decoder: 2.0 * (cached + modulations),
            decoder_cached: 2.0 * cached,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xl_needs_the_published_operations() {
        let (sizes, side) = DitDhConfig::preset("ditdh-xl-256").unwrap();
        let counts = DitDhConfig::PUBLISHED.operation_counts(&sizes, side * side);
        let per_token = |count: f64| (count / 2.0 / 256.0 / 1e5).round() / 10.0;
        assert_eq!(per_token(counts.encoder), 464.2);
        assert_eq!(per_token(counts.decoder - counts.decoder_cached), 61.1);
        assert_eq!(per_token(counts.decoder_cached), 105.9);
    }

    #[test]
    fn inner_sizes_are_the_published_ones() {
        let mlp = |width| DitDhConfig::PUBLISHED.mlp_size(width);
        assert_eq!([mlp(64), mlp(112), mlp(1152), mlp(2048)], [170, 298, 3072, 5461]);
    }

    #[test]
    fn sizes_that_make_no_network_are_named() {
        let (sizes, _) = DitDhConfig::preset("ditdh-s-256").unwrap();
        let good = DitDhConfig::PUBLISHED;
        good.validate(&sizes).unwrap();
        let check = |cfg: DitDhConfig, sizes: &DdtConfig, name: &str| {
            let message = cfg.validate(sizes).unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        };
        check(DitDhConfig { decoder_num_heads: 0, ..good }, &sizes, "decoder_num_heads is 0");
        check(DitDhConfig { decoder_hidden_size: 2050, ..good }, &sizes, "decoder_hidden_size is 2050");
        check(DitDhConfig { mlp_ratio: f64::NAN, ..good }, &sizes, "mlp_ratio is NaN");
        check(good, &DdtConfig { patch_size: 2, ..sizes.clone() }, "patch_size is 2");
    }
}
