//! Which system a network is, beside its sizes, and the paper's systems by name.

use ddt_sharing::OperationCounts;
use serde::{Deserialize, Serialize};

use crate::{
    config::{ConfigError, DdtConfig},
    dit_dh_config::DitDhConfig,
};

/// Which of the paper's systems a network is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Family {
    /// The Decoupled Diffusion Transformer.
    #[default]
    Ddt,
    /// DDT's blocks without the split: the paper's Improved-SiT, and its Improved-REPA when trained with
    /// alignment.
    ImprovedSit,
    /// SiT (arXiv:2401.08740) as published: twice the latent's channels, of which the first half is the
    /// velocity.
    Sit,
    /// REPA (arXiv:2410.06940) as published: SiT with the latent's channels, in the opposite time, and with
    /// its projection head.
    Repa,
    /// DDT's split on SiT's blocks, the paper's DDT†.
    #[serde(alias = "ddt-unimproved")] // its name before version 0.2
    DdtDagger,
    /// DiT^DH (arXiv:2510.11690) as published: DDT's split with a decoder of its own width, in the opposite time.
    DitDh,
}

impl Family {
    /// Whether its networks are a condition encoder and a velocity decoder.
    pub fn is_decoupled(self) -> bool {
        matches!(self, Self::Ddt | Self::DdtDagger | Self::DitDh)
    }

    /// Whether its networks are for latents of one size.
    pub(crate) fn has_one_size(self) -> bool {
        self.has_sit_blocks() || self == Self::DitDh
    }

    /// Whether it is made of SiT's blocks, with fixed positions.
    pub(crate) fn has_sit_blocks(self) -> bool {
        matches!(self, Self::Sit | Self::Repa | Self::DdtDagger)
    }
}

/// Token mixer of a decoder block (Tab. 5 of arXiv:2504.05741).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenMixer {
    /// Attention.
    #[default]
    Attention,
    /// A 3 x 3 convolution on the token grid.
    Conv3x3,
    /// None: a second MLP in place of attention.
    Mlp,
}

/// The projection head inside a REPA network: Linear, SiLU, Linear, SiLU, Linear on one block's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Projection {
    /// Block whose output is projected, from 1.
    pub align_layer: usize,
    /// Channels between the layers.
    pub hidden_size: usize,
    /// Channels of the features it is compared with.
    pub feature_size: usize,
}

/// A network's family and sizes: all that is needed to build it.
///
/// Written as one flat object, the family beside the sizes; without `family` it is a DDT.
/// [`From<DdtConfig>`](From) makes one of plain sizes.
// serde documents `flatten` and `deny_unknown_fields` as an unsupported pair, because a flattened map would take all
// keys; a flattened struct takes its own. A test refuses unknown keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Which system it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub family: Family,
    /// Its sizes. One without a split has as many blocks as both numbers of blocks together.
    #[serde(flatten)]
    pub sizes: DdtConfig,
    /// The decoder's token mixer; attention in all families but [`Family::Ddt`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub decoder_mixer: TokenMixer,
    /// Tokens along either side of the latent, for the families with fixed positions: SiT's, REPA's, DDT†'s and
    /// DiT^DH's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid_side: Option<usize>,
    /// Settings of a DiT^DH beside its sizes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dit_dh: Option<DitDhConfig>,
    /// REPA's projection head; a REPA network without one is trained with a head of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projection: Option<Projection>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A DDT of these sizes.
impl From<DdtConfig> for NetworkConfig {
    fn from(sizes: DdtConfig) -> Self {
        Self {
            family: Family::Ddt,
            sizes,
            decoder_mixer: TokenMixer::Attention,
            grid_side: None,
            dit_dh: None,
            projection: None,
        }
    }
}

impl NetworkConfig {
    /// Checks that this configuration makes a network.
    ///
    /// # Errors
    /// Names the first part that does not, and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.sizes.validate()?;
        let Self { family, sizes, .. } = self;
        let wrong = |part, expected| {
            Err(ConfigError::new(format!("{part} contradicts family {family:?}, expected {expected}")))
        };
        if self.decoder_mixer != TokenMixer::Attention && *family != Family::Ddt {
            return wrong("decoder_mixer", "attention: other mixers are for family ddt");
        }
        match self.grid_side {
            None if family.has_one_size() => return wrong("grid_side", "the tokens along a side"),
            Some(_) if !family.has_one_size() => return wrong("grid_side", "none: positions are rotary"),
            Some(got) if !(1..=1 << 10).contains(&got) => {
                return Err(ConfigError::size("grid_side", "1 to 1024", got));
            }
            _ => {}
        }
        match &self.dit_dh {
            None if *family == Family::DitDh => return wrong("dit_dh", "the decoder's width and heads"),
            Some(_) if *family != Family::DitDh => return wrong("dit_dh", "none"),
            Some(it) => it.validate(sizes)?,
            None => {}
        }
        let Some(it) = self.projection else { return Ok(()) };
        if *family != Family::Repa {
            return wrong("projection", "none: only family repa has a head");
        }
        for (name, got, high) in [
            ("projection.align_layer", it.align_layer, sizes.num_blocks()),
            ("projection.hidden_size", it.hidden_size, 1 << 16),
            ("projection.feature_size", it.feature_size, 1 << 16),
        ] {
            if !(1..=high).contains(&got) {
                return Err(ConfigError::size(name, &format!("1 to {high}"), got));
            }
        }
        Ok(())
    }
}

/// Prefixes of names; one that begins with another comes first.
const FAMILIES: &[(&str, Family)] = &[
    ("ddt-dagger-", Family::DdtDagger),
    ("ddt-unimproved-", Family::DdtDagger),
    ("ddt-", Family::Ddt),
    ("improved-sit-", Family::ImprovedSit),
    ("improved-repa-", Family::ImprovedSit),
    ("sit-", Family::Sit),
    ("repa-", Family::Repa),
];

/// Suffixes of a DDT's name, after its split.
const MIXERS: &[(&str, TokenMixer)] = &[("-conv3x3", TokenMixer::Conv3x3), ("-mlp", TokenMixer::Mlp)];

impl NetworkConfig {
    /// The paper's networks by name, for ImageNet latents (4 channels, 1000 classes, patch 2; those with
    /// fixed positions for 32 x 32 latents).
    ///
    /// | name | system | parameters in files, B, L, XL |
    /// |---|---|---|
    /// | `ddt-{b2,l2,xl2}`, with any split: `ddt-b2-6en6de` | DDT ([`DdtConfig::preset`]) | 130,262,800; 457,648,144; 674,646,352 |
    /// | the same with `-conv3x3` or `-mlp` after the split | DDT with another decoder (Tab. 5) | |
    /// | `ddt-dagger-b2`, with any size and split | DDT†: the split on SiT's blocks | |
    /// | `improved-sit-{b2,l2,xl2}`, `improved-repa-{b2,l2,xl2}` | DDT's blocks without the split | 130,249,744; 457,630,736; 674,626,768 |
    /// | `sit-{b2,l2,xl2}` | SiT, learnt sigma included | 130,512,416; 458,102,816; 675,129,632 |
    /// | `repa-{b2,l2,xl2}` | REPA, projection head included (2048 channels, to 768, after block 8) | |
    /// | `ditdh-{s,b,l,xl}-{256,512}` | DiT^DH for latents of 768 channels and 16 or 32 tokens along a side | S 196,455,764; XL 838,675,796 |
    ///
    /// # Errors
    /// [`ConfigError`] for any other name.
    pub fn preset(name: &str) -> Result<Self, ConfigError> {
        parse(name).ok_or_else(|| ConfigError::unknown_preset(name, &Self::preset_names()))
    }

    /// The full names of all presets; only the paper's splits and decoder types.
    pub fn preset_names() -> Vec<String> {
        let mut names = DdtConfig::preset_names();
        // Figs. 7 and 8, and Tab. 5.
        names.extend(
            ["b2-4en8de", "b2-6en6de", "b2-10en2de", "l2-10en14de", "l2-12en12de", "l2-16en8de"]
                .map(|it| format!("ddt-{it}")),
        );
        names.extend(MIXERS.iter().map(|(mixer, _)| format!("ddt-b2-8en4de{mixer}")));
        names.push("ddt-dagger-b2-8en4de".to_owned());
        for (prefix, family) in FAMILIES {
            if !family.is_decoupled() {
                names.extend(["b2", "l2", "xl2"].map(|size| format!("{prefix}{size}")));
            }
        }
        names.extend(DitDhConfig::preset_names());
        names
    }

    /// Floating-point operations of one row of a batch at one step; see [`DdtConfig::operation_counts`].
    ///
    /// Those of families without two halves, and of other token mixers, are counted as those of a DDT of these sizes.
    pub fn operation_counts(&self, height: usize, width: usize) -> OperationCounts {
        match &self.dit_dh {
            Some(it) => it.operation_counts(&self.sizes, self.sizes.num_tokens(height, width)),
            None => self.sizes.operation_counts(height, width),
        }
    }
}

fn parse(name: &str) -> Option<NetworkConfig> {
    if let Some((sizes, grid_side)) = DitDhConfig::preset(name) {
        let (family, dit_dh) = (Family::DitDh, Some(DitDhConfig::PUBLISHED));
        return Some(NetworkConfig { family, dit_dh, grid_side: Some(grid_side), ..sizes.into() });
    }
    let (rest, family) =
        FAMILIES.iter().find_map(|(prefix, family)| Some((name.strip_prefix(prefix)?, *family)))?;
    let mixer = MIXERS.iter().find_map(|(suffix, mixer)| Some((rest.strip_suffix(suffix)?, *mixer)));
    let (size, decoder_mixer) = mixer.unwrap_or((rest, TokenMixer::Attention));
    let split = size.contains('-');
    // A split means nothing without two halves; other mixers are for a DDT's decoder, whose split is named.
    let fits = match family {
        Family::Ddt => split || decoder_mixer == TokenMixer::Attention,
        Family::DdtDagger => decoder_mixer == TokenMixer::Attention,
        _ => !split && decoder_mixer == TokenMixer::Attention,
    };
    let sizes = DdtConfig::preset(&format!("ddt-{size}")).ok().filter(|_| fits)?;
    Some(NetworkConfig {
        family,
        sizes,
        decoder_mixer,
        dit_dh: None,
        grid_side: family.has_sit_blocks().then_some(16),
        projection: (family == Family::Repa).then_some(Projection {
            align_layer: 8,
            hidden_size: 2048,
            feature_size: 768,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_alone_are_a_ddt_and_are_written_as_before() {
        let sizes = DdtConfig::b_2();
        let json = serde_json::to_string(&sizes).unwrap();
        let cfg: NetworkConfig = serde_json::from_str(&json).unwrap();
        assert_eq!(cfg, NetworkConfig::from(sizes));
        assert_eq!(serde_json::to_string(&cfg).unwrap(), json);
    }

    #[test]
    fn every_preset_is_written_and_read_without_unknown_keys() {
        for name in NetworkConfig::preset_names() {
            let cfg = NetworkConfig::preset(&name).unwrap();
            cfg.validate().unwrap();
            let json = serde_json::to_string(&cfg).unwrap();
            assert_eq!(serde_json::from_str::<NetworkConfig>(&json).unwrap(), cfg, "{json}");
            let unknown = json.replacen('{', "{\"depth\":3,", 1);
            let message = serde_json::from_str::<NetworkConfig>(&unknown).unwrap_err().to_string();
            assert!(message.contains("depth"), "{message}");
        }
        assert!(serde_json::from_str::<DdtConfig>(r#"{"depth":3}"#).is_err());
    }

    #[test]
    fn the_old_name_of_ddt_dagger_is_read() {
        let dagger = NetworkConfig::preset("ddt-dagger-b2").unwrap();
        assert_eq!(NetworkConfig::preset("ddt-unimproved-b2").unwrap(), dagger);
        let json = serde_json::to_string(&dagger).unwrap();
        let old = json.replace("\"ddt-dagger\"", "\"ddt-unimproved\"");
        assert_ne!(json, old);
        assert_eq!(serde_json::from_str::<NetworkConfig>(&old).unwrap(), dagger);
    }

    #[test]
    fn parts_that_contradict_the_family_are_named() {
        let preset = |name: &str| NetworkConfig::preset(name).unwrap();
        let check = |cfg: NetworkConfig, part: &str| {
            let message = cfg.validate().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        check(NetworkConfig { decoder_mixer: TokenMixer::Mlp, ..preset("sit-b2") }, "decoder_mixer");
        check(NetworkConfig { grid_side: None, ..preset("sit-b2") }, "grid_side");
        check(NetworkConfig { grid_side: Some(0), ..preset("sit-b2") }, "grid_side");
        check(NetworkConfig { grid_side: Some(16), ..preset("improved-sit-b2") }, "grid_side");
        check(NetworkConfig { dit_dh: None, ..preset("ditdh-s-256") }, "dit_dh");
        check(NetworkConfig { grid_side: None, ..preset("ditdh-s-256") }, "grid_side");
        check(NetworkConfig { dit_dh: Some(DitDhConfig::PUBLISHED), ..preset("ddt-b2") }, "dit_dh");
        let projection = preset("repa-b2").projection;
        check(NetworkConfig { projection, ..preset("sit-b2") }, "projection");
        let projection = projection.map(|it| Projection { align_layer: 13, ..it });
        check(NetworkConfig { projection, ..preset("repa-b2") }, "projection.align_layer");
    }

    #[test]
    fn other_names_are_refused_with_the_known_ones() {
        for name in [
            "",
            "sit",
            "sit-s2",
            "sit-b2-8en4de",
            "repa-b2-mlp",
            "ddt-dagger-b2-8en4de-mlp",
            "ddt-b2-mlp",
            "ddt-b2-8en4de-conv5x5",
            "ditdh-xl",
            "ditdh-xl-384",
        ] {
            let message = NetworkConfig::preset(name).unwrap_err().to_string();
            assert!(message.contains("repa-xl2"), "{message}");
        }
    }
}
