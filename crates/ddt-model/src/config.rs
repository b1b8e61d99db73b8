//! Sizes of a DDT.

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

/// Why sizes do not make a network.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// A size is outside what a network can have.
    #[error("{name} is {got}, expected {expected}")]
    Size {
        /// The field.
        name: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        got: usize,
    },
    /// A part of a configuration does not go with the network's family.
    #[error("{part} does not go with family {family:?}, expected {expected}")]
    Part {
        /// The network's family.
        family: crate::Family,
        /// The field.
        part: &'static str,
        /// What it may be.
        expected: String,
    },
    /// No preset has this name.
    #[error("no preset is named {name:?}, expected one like {known}")]
    UnknownPreset {
        /// The name given.
        name: String,
        /// Names that exist.
        known: String,
    },
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

    /// Tokens of a latent of this size, `L`; 0 without a patch.
    pub fn num_tokens(&self, height: usize, width: usize) -> usize {
        let patches = |side: usize| side.checked_div(self.patch_size).unwrap_or(0);
        patches(height) * patches(width)
    }

    /// Whether these sizes make a network.
    ///
    /// # Errors
    /// Names the first size that does not, and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        // Upper bounds are far above any network that exists; they keep a hostile file from
        // overflowing a product of sizes.
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
                return Err(ConfigError::Size { name, expected: format!("{low} to {high}"), got });
            }
        }
        if !self.hidden_size.is_multiple_of(4 * self.num_heads) {
            let expected = format!("a multiple of 4 x {} heads", self.num_heads);
            return Err(ConfigError::Size { name: "hidden_size", expected, got: self.hidden_size });
        }
        if self.num_encoder_blocks + self.num_decoder_blocks == 0 {
            let expected = "at least one block in either half".to_owned();
            return Err(ConfigError::Size { name: "num_decoder_blocks", expected, got: 0 });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_make_no_network_are_named() {
        let good = DdtConfig::preset("ddt-b2").unwrap();
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
    fn unknown_keys_are_refused() {
        let json = r#"{"in_channels":4,"patch_size":2,"hidden_size":32,"num_heads":2,
            "num_encoder_blocks":1,"num_decoder_blocks":1,"num_classes":10,"depth":3}"#;
        assert!(serde_json::from_str::<DdtConfig>(json).is_err());
    }
}
