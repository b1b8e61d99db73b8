//! The tables, and the networks that they compare.

use ddt::model::{DdtConfig, Family, NetworkConfig, TokenMixer};

use crate::classifier::Classifier;

/// Channels of the latents of the bundled autoencoder.
const CHANNELS: usize = 32;

/// Blocks of every network, both halves together.
pub(crate) const BLOCKS: usize = 8;

/// Channels of an attention head.
pub(crate) const HEAD_DIM: usize = 64;

/// A comparison of the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// The decoder alone against encoder and decoder of 2:6, 4:4, 6:2 and 7:1 blocks (Tab. 2, Figs. 7 and 8)
    Split,
    /// Decoder blocks of attention, 3 x 3 convolution and MLP, encoder to decoder 6:2 (Tab. 5)
    Decoder,
}

impl Table {
    /// Its name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Decoder => "decoder",
        }
    }

    /// The networks that it compares; differences are to the first.
    pub(crate) fn systems(self) -> Vec<System> {
        let split = |encoder_blocks| System::Ddt { encoder_blocks, mixer: TokenMixer::Attention };
        let mixed = |mixer| System::Ddt { encoder_blocks: 6, mixer };
        match self {
            Self::Split => std::iter::once(System::DecoderOnly).chain([2, 4, 6, 7].map(split)).collect(),
            Self::Decoder => [TokenMixer::Attention, TokenMixer::Conv3x3, TokenMixer::Mlp].map(mixed).into(),
        }
    }
}

/// A network, but for its width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// DDT's blocks without the split: the paper's Improved-SiT.
    DecoderOnly,
    /// Condition encoder and velocity decoder.
    Ddt {
        /// Blocks of the encoder; the decoder has the rest.
        encoder_blocks: usize,
        /// Token mixer of the decoder's blocks.
        mixer: TokenMixer,
    },
}

impl System {
    /// Its name in files.
    pub(crate) fn name(self) -> String {
        let Self::Ddt { encoder_blocks, mixer } = self else { return "decoder-only".to_owned() };
        let mixer = match mixer {
            TokenMixer::Attention => "",
            TokenMixer::Conv3x3 => "-conv3x3",
            TokenMixer::Mlp => "-mlp",
        };
        format!("ddt-{encoder_blocks}en{}de{mixer}", BLOCKS - encoder_blocks)
    }

    /// The name of its run with a seed.
    pub(crate) fn run_name(self, seed: u32) -> String {
        format!("{}-seed{seed}", self.name())
    }

    /// Its network of some channels, for CIFAR-10 as latents of the bundled autoencoder.
    pub(crate) fn network(self, width: usize) -> NetworkConfig {
        let (family, num_encoder_blocks, decoder_mixer) = match self {
            // All blocks are the decoder's; a configuration counts both kinds.
            Self::DecoderOnly => (Family::ImprovedSit, 0, TokenMixer::Attention),
            Self::Ddt { encoder_blocks, mixer } => (Family::Ddt, encoder_blocks, mixer),
        };
        let sizes = DdtConfig {
            in_channels: CHANNELS,
            patch_size: 1,
            hidden_size: width,
            num_heads: width / HEAD_DIM,
            num_encoder_blocks,
            num_decoder_blocks: BLOCKS - num_encoder_blocks,
            num_classes: Classifier::CLASSES,
        };
        NetworkConfig { family, decoder_mixer, ..sizes.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn tables_share_a_network_and_every_network_can_be_made() {
        let all: Vec<System> = [Table::Split, Table::Decoder].iter().flat_map(|it| it.systems()).collect();
        assert_eq!(all.len(), 5 + 3);
        let names: BTreeSet<String> = all.iter().map(|it| it.name()).collect();
        assert_eq!(names.len(), all.len() - 1);
        assert!(names.contains("ddt-6en2de") && names.contains("ddt-6en2de-conv3x3"), "{names:?}");
        for system in all {
            let network = system.network(128);
            network.validate().unwrap();
            let blocks = network.sizes.num_encoder_blocks + network.sizes.num_decoder_blocks;
            assert_eq!((blocks, network.sizes.head_dim()), (8, 64));
        }
    }
}
