//! Sizes of a DDT: the paper's by name, what makes a network, and what a step of one costs.

use ddt_sharing::OperationCounts;
use serde::{Deserialize, Serialize};

/// Sizes of a [`Ddt`](crate::Ddt). They do not include a resolution: any multiple of the patch works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DdtConfig {
    /// Channels of a latent.
    pub in_channels: usize,
    /// Side of a patch, in latent pixels.
    pub patch_size: usize,
    /// Channels of a token.
    pub hidden_size: usize,
    /// Attention heads; each has `hidden_size / num_heads` channels, a multiple of 4.
    pub num_heads: usize,
    /// Blocks of the condition encoder.
    pub num_encoder_blocks: usize,
    /// Blocks of the velocity decoder.
    pub num_decoder_blocks: usize,
    /// Classes; label `num_classes` means "no class".
    pub num_classes: usize,
}

/// A configuration makes no network, or no preset has a name; the message says what was expected.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// `name` has a value outside of what a network can have.
    pub(crate) fn size(name: &str, expected: &str, got: usize) -> Self {
        Self(format!("{name} is {got}, expected {expected}"))
    }

    /// A field contradicts the rest of the configuration.
    pub(crate) fn new(message: String) -> Self {
        Self(message)
    }

    pub(crate) fn unknown_preset(name: &str, known: &[String]) -> Self {
        Self(format!("no preset is named {name:?}, expected one like {}", known.join(", ")))
    }
}

/// A preset's sizes.
type Preset = fn() -> DdtConfig;

/// A preset's name in front of its split, and its sizes.
const PRESETS: [(&str, Preset); 3] =
    [("ddt-b2", DdtConfig::b_2), ("ddt-l2", DdtConfig::l_2), ("ddt-xl2", DdtConfig::xl_2)];

/// The paper's networks, for ImageNet latents of 4 channels.
impl DdtConfig {
    /// DDT-B/2, 8 encoder and 4 decoder blocks: 130,262,800 parameters.
    pub fn b_2() -> Self {
        Self::imagenet(768, 12, (8, 4))
    }

    /// DDT-L/2, 20 encoder and 4 decoder blocks: 457,648,144 parameters.
    pub fn l_2() -> Self {
        Self::imagenet(1024, 16, (20, 4))
    }

    /// DDT-XL/2, 22 encoder and 6 decoder blocks: 674,646,352 parameters.
    pub fn xl_2() -> Self {
        Self::imagenet(1152, 16, (22, 6))
    }

    fn imagenet(hidden_size: usize, num_heads: usize, split: (usize, usize)) -> Self {
        let (num_encoder_blocks, num_decoder_blocks) = split;
        Self {
            in_channels: 4,
            patch_size: 2,
            hidden_size,
            num_heads,
            num_encoder_blocks,
            num_decoder_blocks,
            num_classes: 1000,
        }
    }

    /// The sizes of a name: `ddt-b2`, `ddt-l2`, `ddt-xl2`, or with a split of the same number of blocks, as
    /// `ddt-xl2-22en6de` or `ddt-b2-6en6de`.
    ///
    /// # Errors
    /// [`ConfigError`] for any other name.
    pub fn preset(name: &str) -> Result<Self, ConfigError> {
        parse(name).ok_or_else(|| ConfigError::unknown_preset(name, &Self::preset_names()))
    }

    /// The full names of the published networks.
    pub fn preset_names() -> Vec<String> {
        let full = |(name, preset): &(&str, Preset)| {
            let it = preset();
            format!("{name}-{}en{}de", it.num_encoder_blocks, it.num_decoder_blocks)
        };
        PRESETS.iter().map(full).collect()
    }
}

fn parse(name: &str) -> Option<DdtConfig> {
    let rest = |preset: &str| name.strip_prefix(preset).filter(|it| it.is_empty() || it.starts_with('-'));
    let (split, preset) = PRESETS.iter().find_map(|(name, preset)| Some((rest(name)?, preset())))?;
    let Some(split) = split.strip_prefix('-') else { return Some(preset) };
    let (encoder, decoder) = split.strip_suffix("de")?.split_once("en")?;
    let (num_encoder_blocks, num_decoder_blocks): (usize, usize) =
        (encoder.parse().ok()?, decoder.parse().ok()?);
    let blocks = preset.num_blocks();
    (num_encoder_blocks.checked_add(num_decoder_blocks) == Some(blocks)).then_some(DdtConfig {
        num_encoder_blocks,
        num_decoder_blocks,
        ..preset
    })
}

impl DdtConfig {
    /// Channels of a patch, `C P^2`.
    pub fn patch_dim(&self) -> usize {
        self.in_channels * self.patch_size * self.patch_size
    }

    /// Channels of a head, `K`; 0 without heads.
    pub fn head_dim(&self) -> usize {
        self.hidden_size.checked_div(self.num_heads).unwrap_or(0)
    }

    /// Blocks of both halves.
    pub fn num_blocks(&self) -> usize {
        self.num_encoder_blocks.saturating_add(self.num_decoder_blocks)
    }

    /// Rows and columns of the tokens of a latent; 0 without a patch.
    pub fn token_grid(&self, height: usize, width: usize) -> (usize, usize) {
        let patches = |side: usize| side.checked_div(self.patch_size).unwrap_or(0);
        (patches(height), patches(width))
    }

    /// Tokens of a latent of this size, `L`; 0 without a patch.
    pub fn num_tokens(&self, height: usize, width: usize) -> usize {
        let (rows, columns) = self.token_grid(height, width);
        rows * columns
    }

    /// Checks that these sizes make a network.
    ///
    /// # Errors
    /// Names the first size that does not, and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        // Upper bounds are far above any network that exists; they keep the sizes of a hostile file from
        // overflowing a product.
        let bounds = [
            ("in_channels", self.in_channels, 1, 1 << 16),
            ("patch_size", self.patch_size, 1, 1 << 8),
            ("hidden_size", self.hidden_size, 4, 1 << 16),
            ("num_heads", self.num_heads, 1, 1 << 14),
            ("num_encoder_blocks", self.num_encoder_blocks, 0, 1 << 12),
            ("num_decoder_blocks", self.num_decoder_blocks, 0, 1 << 12),
            ("num_classes", self.num_classes, 1, 1 << 24),
        ];
        for (name, got, low, high) in bounds {
            if !(low..=high).contains(&got) {
                return Err(ConfigError::size(name, &format!("{low} to {high}"), got));
            }
        }
        if !self.hidden_size.is_multiple_of(4 * self.num_heads) {
            let expected = format!("a multiple of 4 x {} heads", self.num_heads);
            return Err(ConfigError::size("hidden_size", &expected, self.hidden_size));
        }
        if self.num_blocks() == 0 {
            return Err(ConfigError::size("num_decoder_blocks", "at least one block in either half", 0));
        }
        Ok(())
    }

    /// Floating-point operations of one row of a batch at one step, two for each multiply-add of a matmul;
    /// everything else is below a hundredth of them.
    ///
    /// DDT-XL/2 on 32 x 32 latents: 263.0e9 with its encoder, 0.35e9 of them the encoder's modulation.
    pub fn operation_counts(&self, height: usize, width: usize) -> OperationCounts {
        let (l, d) = (self.num_tokens(height, width) as f64, self.hidden_size as f64);
        let patch = self.patch_dim() as f64;
        let hidden = ddt_blocks::swiglu_hidden_size(self.hidden_size) as f64;
        // Query, key, value and output; scores and their sum; the MLP's three matmuls.
        let block = l * (4.0 * d * d + 2.0 * l * d + 3.0 * d * hidden);
        let embed = l * patch * d;
        let timestep = 256.0 * d + d * d;
        let encoder = timestep + embed + self.num_encoder_blocks as f64 * (block + 6.0 * d * d);
        let cached = embed + self.num_decoder_blocks as f64 * block + l * d * patch;
        let modulations = l * d * d * (6 * self.num_decoder_blocks + 2) as f64;
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
    fn names_and_splits_parse() {
        let xl = DdtConfig::preset("ddt-xl2-22en6de").unwrap();
        assert_eq!((xl.hidden_size, xl.num_encoder_blocks, xl.num_decoder_blocks), (1152, 22, 6));
        assert_eq!(xl, DdtConfig::preset("ddt-xl2").unwrap());
        assert_eq!(DdtConfig::preset("ddt-b2-6en6de").unwrap().num_decoder_blocks, 6);
        for name in DdtConfig::preset_names() {
            DdtConfig::preset(&name).unwrap().validate().unwrap();
        }
    }

    #[test]
    fn other_names_are_refused_with_the_known_ones() {
        let overflow = "ddt-b2-18446744073709551615en5de";
        for name in
            ["", "ddt", "ddt-", "ddt-s2", "ddt-b2-9en4de", "ddt-b2-8en", "ddt-b28", "sit-b2", overflow]
        {
            let message = DdtConfig::preset(name).unwrap_err().to_string();
            assert!(message.contains("ddt-xl2-22en6de"), "{message}");
        }
    }

    #[test]
    fn sizes_that_make_no_network_are_named() {
        let good = DdtConfig::b_2();
        good.validate().unwrap();
        let check = |cfg: DdtConfig, name: &str| {
            let message = cfg.validate().unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        };
        check(DdtConfig { patch_size: 0, ..good.clone() }, "patch_size is 0");
        check(DdtConfig { num_heads: 0, ..good.clone() }, "num_heads is 0");
        check(DdtConfig { num_heads: 7, ..good.clone() }, "hidden_size is 768");
        check(DdtConfig { hidden_size: usize::MAX, ..good.clone() }, "hidden_size");
        check(DdtConfig { num_encoder_blocks: 0, num_decoder_blocks: 0, ..good }, "num_decoder_blocks");
    }

    #[test]
    fn xl_needs_the_published_operations() {
        let counts = DdtConfig::xl_2().operation_counts(32, 32);
        let total = counts.encoder + counts.decoder;
        // Counts elsewhere leave out the encoder's modulation, one vector per image.
        let encoder_modulation = 2.0 * 22.0 * 6.0 * 1152.0 * 1152.0;
        assert!(((total - encoder_modulation) / 262.6e9 - 1.0).abs() < 1e-4, "{total:e}");
    }
}
