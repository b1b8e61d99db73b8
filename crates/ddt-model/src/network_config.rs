//! What a network is, beside its sizes.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use ddt_blocks::sincos_positions;
use serde::{Deserialize, Serialize};

use crate::{
    config::{ConfigError, DdtConfig},
    ddt::Ddt,
    decoder_only::DecoderOnly,
    network::VelocityNetwork,
    parameter_shapes::parameter_shapes,
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
    #[serde(rename = "ddt-dagger", alias = "ddt-unimproved")]
    DdtDagger,
}

/// How the tokens of a decoder block meet (Tab. 5 of arXiv:2504.05741).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenMixer {
    /// By attention.
    #[default]
    Attention,
    /// By a 3 x 3 convolution on the token grid.
    Conv3x3,
    /// Not at all: a second MLP stands in the place of attention.
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Document", into = "Document")]
pub struct NetworkConfig {
    /// Which system it is.
    pub family: Family,
    /// Its sizes. One without halves has as many blocks as both numbers of blocks say together.
    pub sizes: DdtConfig,
    /// The decoder's token mixer; other families than [`Family::Ddt`] have attention alone.
    pub decoder_mixer: TokenMixer,
    /// Tokens on either side of the latent, for the families with fixed positions: SiT's, REPA's and DDT†'s.
    pub grid_side: Option<usize>,
    /// REPA's projection head; without one it is a REPA network that another head is trained with.
    pub projection: Option<Projection>,
}

/// What a configuration is written as.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default, skip_serializing_if = "is_default")]
    family: Family,
    in_channels: usize,
    patch_size: usize,
    hidden_size: usize,
    num_heads: usize,
    num_encoder_blocks: usize,
    num_decoder_blocks: usize,
    num_classes: usize,
    #[serde(default, skip_serializing_if = "is_default")]
    decoder_mixer: TokenMixer,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grid_side: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    projection: Option<Projection>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The name under which files of SiT's kind carry the positions.
const POSITIONS: &str = "pos_embed";

impl Family {
    /// Whether its networks are a condition encoder and a velocity decoder.
    pub fn has_halves(self) -> bool {
        matches!(self, Self::Ddt | Self::DdtDagger)
    }

    /// Whether it is made of SiT's blocks, with fixed positions.
    pub(crate) fn has_sit_blocks(self) -> bool {
        matches!(self, Self::Sit | Self::Repa | Self::DdtDagger)
    }
}

impl NetworkConfig {
    /// Builds the network; `vb` gives parameters under the names published for its family.
    ///
    /// # Errors
    /// When the configuration makes no network ([`validate`](Self::validate)) or `vb` lacks a parameter.
    pub fn build(&self, vb: VarBuilder) -> Result<Box<dyn VelocityNetwork>> {
        if self.family.has_halves() {
            let ddt = Ddt::from_config(self, vb).map_err(candle_core::Error::from)?;
            return Ok(Box::new(ddt));
        }
        Ok(Box::new(DecoderOnly::new(self, vb)?))
    }

    /// Names and shapes of the network's parameters, sorted by name, without making one.
    ///
    /// # Errors
    /// When the configuration makes no network.
    pub fn parameter_shapes(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        parameter_shapes(|vb| self.build(vb))
    }

    /// What a file holds beside the parameters: SiT's positions, a formula that its files carry as a tensor.
    ///
    /// # Errors
    /// When the configuration makes no network.
    pub fn fixed_tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let grid_side = self.grid_side.filter(|_| self.family.has_sit_blocks());
        let table = |side| Ok((POSITIONS.to_owned(), sincos_positions(self.sizes.hidden_size, side)?));
        grid_side.into_iter().map(table).collect()
    }

    /// Whether this makes a network.
    ///
    /// # Errors
    /// Names the first part that does not, and what it may be.
    pub fn validate(&self) -> std::result::Result<(), ConfigError> {
        self.sizes.validate()?;
        let Self { family, sizes, .. } = self;
        let wrong =
            |part, expected: &str| ConfigError::Part { family: *family, part, expected: expected.to_owned() };
        if self.decoder_mixer != TokenMixer::Attention && *family != Family::Ddt {
            return Err(wrong("decoder_mixer", "attention: other mixers are for family ddt"));
        }
        match self.grid_side {
            None if family.has_sit_blocks() => return Err(wrong("grid_side", "the tokens on a side")),
            Some(_) if !family.has_sit_blocks() => {
                return Err(wrong("grid_side", "none: positions are rotary"));
            }
            Some(got) if !(1..=1 << 10).contains(&got) => {
                return Err(ConfigError::Size { name: "grid_side", expected: "1 to 1024".to_owned(), got });
            }
            _ => {}
        }
        let Some(it) = self.projection else { return Ok(()) };
        if *family != Family::Repa {
            return Err(wrong("projection", "none: the head is part of family repa alone"));
        }
        let blocks = sizes.num_encoder_blocks + sizes.num_decoder_blocks;
        for (name, got, high) in [
            ("projection.align_layer", it.align_layer, blocks),
            ("projection.hidden_size", it.hidden_size, 1 << 16),
            ("projection.feature_size", it.feature_size, 1 << 16),
        ] {
            if !(1..=high).contains(&got) {
                return Err(ConfigError::Size { name, expected: format!("1 to {high}"), got });
            }
        }
        Ok(())
    }
}

/// A DDT of these sizes.
impl From<DdtConfig> for NetworkConfig {
    fn from(sizes: DdtConfig) -> Self {
        Self {
            family: Family::Ddt,
            sizes,
            decoder_mixer: TokenMixer::Attention,
            grid_side: None,
            projection: None,
        }
    }
}

impl From<Document> for NetworkConfig {
    fn from(it: Document) -> Self {
        let sizes = DdtConfig {
            in_channels: it.in_channels,
            patch_size: it.patch_size,
            hidden_size: it.hidden_size,
            num_heads: it.num_heads,
            num_encoder_blocks: it.num_encoder_blocks,
            num_decoder_blocks: it.num_decoder_blocks,
            num_classes: it.num_classes,
        };
        let Document { family, decoder_mixer, grid_side, projection, .. } = it;
        Self { family, sizes, decoder_mixer, grid_side, projection }
    }
}

impl From<NetworkConfig> for Document {
    fn from(it: NetworkConfig) -> Self {
        let NetworkConfig { family, sizes, decoder_mixer, grid_side, projection } = it;
        Self {
            family,
            in_channels: sizes.in_channels,
            patch_size: sizes.patch_size,
            hidden_size: sizes.hidden_size,
            num_heads: sizes.num_heads,
            num_encoder_blocks: sizes.num_encoder_blocks,
            num_decoder_blocks: sizes.num_decoder_blocks,
            num_classes: sizes.num_classes,
            decoder_mixer,
            grid_side,
            projection,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_alone_are_a_ddt_and_are_written_as_before() {
        let sizes = DdtConfig::preset("ddt-b2").unwrap();
        let json = serde_json::to_string(&sizes).unwrap();
        let cfg: NetworkConfig = serde_json::from_str(&json).unwrap();
        assert_eq!(cfg, NetworkConfig::from(sizes));
        assert_eq!(serde_json::to_string(&cfg).unwrap(), json);
    }

    #[test]
    fn every_preset_is_written_and_read() {
        for name in NetworkConfig::preset_names() {
            let cfg = NetworkConfig::preset(&name).unwrap();
            cfg.validate().unwrap();
            let json = serde_json::to_string(&cfg).unwrap();
            assert_eq!(serde_json::from_str::<NetworkConfig>(&json).unwrap(), cfg, "{json}");
            let unknown = json.replacen('{', "{\"depth\":3,", 1);
            assert!(serde_json::from_str::<NetworkConfig>(&unknown).is_err());
        }
    }

    #[test]
    fn parts_that_do_not_belong_to_the_family_are_named() {
        let preset = |name: &str| NetworkConfig::preset(name).unwrap();
        let check = |cfg: NetworkConfig, part: &str| {
            let message = cfg.validate().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        check(NetworkConfig { decoder_mixer: TokenMixer::Mlp, ..preset("sit-b2") }, "decoder_mixer");
        check(NetworkConfig { grid_side: None, ..preset("sit-b2") }, "grid_side");
        check(NetworkConfig { grid_side: Some(0), ..preset("sit-b2") }, "grid_side");
        check(NetworkConfig { grid_side: Some(16), ..preset("improved-sit-b2") }, "grid_side");
        let projection = preset("repa-b2").projection;
        check(NetworkConfig { projection, ..preset("sit-b2") }, "projection");
        let projection = projection.map(|it| Projection { align_layer: 13, ..it });
        check(NetworkConfig { projection, ..preset("repa-b2") }, "projection.align_layer");
    }
}
