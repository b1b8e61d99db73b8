//! The networks that are compared.

use clap::ValueEnum;

/// Blocks of every network, both halves together.
pub const BLOCKS: usize = 8;

/// Channels of an attention head.
pub const HEAD_DIM: u32 = 64;

/// A comparison of the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
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

    /// What it compares; differences are to the first.
    #[must_use]
    pub fn systems(self) -> Vec<System> {
        let attention = |encoder_blocks| System::Ddt { encoder_blocks, mixer: "attention" };
        match self {
            Self::Split => {
                let splits = [2, 4, 6, 7].map(attention);
                std::iter::once(System::DecoderOnly).chain(splits).collect()
            }
            Self::Decoder => {
                ["attention", "conv3x3", "mlp"].map(|mixer| System::Ddt { encoder_blocks: 6, mixer }).into()
            }
        }
    }
}

/// A network, but for its width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// DDT's blocks without the split: the paper's Improved-SiT.
    DecoderOnly,
    /// Condition encoder and velocity decoder.
    Ddt {
        /// Blocks of the encoder; the decoder has the rest.
        encoder_blocks: usize,
        /// How the tokens of a decoder block meet, as settings say it.
        mixer: &'static str,
    },
}

impl System {
    /// All networks of some tables, none twice.
    #[must_use]
    pub fn of_tables(tables: &[Table]) -> Vec<Self> {
        let mut all = Vec::new();
        for system in tables.iter().flat_map(|it| it.systems()) {
            if !all.contains(&system) {
                all.push(system);
            }
        }
        all
    }

    /// Its name in files.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::DecoderOnly => "decoder-only".to_owned(),
            Self::Ddt { encoder_blocks, mixer } => {
                let mixer = if *mixer == "attention" { String::new() } else { format!("-{mixer}") };
                format!("ddt-{encoder_blocks}en{}de{mixer}", BLOCKS - encoder_blocks)
            }
        }
    }

    /// The name of its run with a seed.
    #[must_use]
    pub fn run_name(&self, seed: u32) -> String {
        format!("{}-seed{seed}", self.name())
    }

    /// Its network as a table of settings.
    #[must_use]
    pub fn settings(&self, width: u32) -> String {
        let (encoder, more) = match self {
            // All blocks are the decoder's; settings count both kinds.
            Self::DecoderOnly => (0, "family = \"improved-sit\"\n".to_owned()),
            Self::Ddt { encoder_blocks, mixer } => {
                (*encoder_blocks, format!("decoder_mixer = \"{mixer}\"\n"))
            }
        };
        format!(
            "[network]\n{more}patch_size = 1\nhidden_size = {width}\nnum_heads = {}\n\
             num_encoder_blocks = {encoder}\nnum_decoder_blocks = {}\n",
            width / HEAD_DIM,
            BLOCKS - encoder
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ddt_model::NetworkConfig;

    use super::*;

    #[test]
    fn tables_share_a_network_and_every_name_is_one_network() {
        let all = System::of_tables(Table::value_variants());
        assert_eq!(all.len(), 5 + 3 - 1);
        let names: BTreeSet<String> = all.iter().map(System::name).collect();
        assert_eq!(names.len(), all.len());
        assert!(names.contains("ddt-6en2de") && names.contains("ddt-6en2de-conv3x3"), "{names:?}");
    }

    #[test]
    fn every_network_can_be_made_and_has_as_many_blocks() {
        for system in System::of_tables(Table::value_variants()) {
            let text = system.settings(128) + "in_channels = 32\nnum_classes = 10\n";
            let table: toml::Table = toml::from_str(&text).unwrap();
            let network: NetworkConfig = table["network"].clone().try_into().unwrap();
            network.validate().unwrap();
            let blocks = network.sizes.num_encoder_blocks + network.sizes.num_decoder_blocks;
            assert_eq!((blocks, network.sizes.head_dim()), (8, 64));
        }
    }
}
