//! The paper's sizes by name.

use crate::config::{ConfigError, DdtConfig};

/// Name, blocks, hidden size, heads, and the published number of encoder blocks.
const SIZES: [(&str, usize, usize, usize, usize); 3] =
    [("b2", 12, 768, 12, 8), ("l2", 24, 1024, 16, 20), ("xl2", 28, 1152, 16, 22)];

impl DdtConfig {
    /// The paper's networks for ImageNet latents (4 channels, 1000 classes, patch 2).
    ///
    /// | name | blocks | hidden size | heads | parameters |
    /// |---|---|---|---|---|
    /// | `ddt-b2-8en4de`, short `ddt-b2` | 12 | 768 | 12 | 130,262,800 |
    /// | `ddt-l2-20en4de`, short `ddt-l2` | 24 | 1024 | 16 | 457,648,144 |
    /// | `ddt-xl2-22en6de`, short `ddt-xl2` | 28 | 1152 | 16 | 674,646,352 |
    ///
    /// Any other split of the same blocks works too: `ddt-b2-6en6de`.
    ///
    /// # Errors
    /// [`ConfigError::UnknownPreset`] for any other name.
    pub fn preset(name: &str) -> Result<Self, ConfigError> {
        parse(name).ok_or_else(|| ConfigError::UnknownPreset {
            name: name.to_owned(),
            known: Self::preset_names().join(", "),
        })
    }

    /// The full names of the published networks.
    pub fn preset_names() -> Vec<String> {
        SIZES
            .iter()
            .map(|(size, blocks, .., encoder)| format!("ddt-{size}-{encoder}en{}de", blocks - encoder))
            .collect()
    }
}

fn parse(name: &str) -> Option<DdtConfig> {
    let mut parts = name.strip_prefix("ddt-")?.splitn(2, '-');
    let size = parts.next()?;
    let &(_, blocks, hidden_size, num_heads, published) = SIZES.iter().find(|it| it.0 == size)?;
    let (num_encoder_blocks, num_decoder_blocks) = match parts.next() {
        None => (published, blocks - published),
        Some(split) => {
            let (encoder, decoder) = split.strip_suffix("de")?.split_once("en")?;
            (encoder.parse().ok()?, decoder.parse().ok()?)
        }
    };
    (num_decoder_blocks <= blocks && num_encoder_blocks == blocks - num_decoder_blocks).then_some(DdtConfig {
        in_channels: 4,
        patch_size: 2,
        hidden_size,
        num_heads,
        num_encoder_blocks,
        num_decoder_blocks,
        num_classes: 1000,
    })
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
        for name in [
            "",
            "ddt",
            "ddt-",
            "ddt-s2",
            "ddt-b2-9en4de",
            "ddt-b2-8en",
            "sit-b2",
            "ddt-b2-18446744073709551615en5de",
        ] {
            let message = DdtConfig::preset(name).unwrap_err().to_string();
            assert!(message.contains("ddt-xl2-22en6de"), "{message}");
        }
    }
}
