//! Settings of a comparison: which networks a table compares, and how each is trained and measured, equal for all but
//! for what the table compares.

use std::{fmt, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::value_parser;
use ddt::{
    flow::{Guidance, TimeGrid},
    model::{DdtConfig, Family, NetworkConfig, TokenMixer},
};
use ddt_train::{
    AutoencoderSettings, ImageSettings, LrSchedule, NetworkSettings, Settings, TrainConfig, WatchSettings,
};
use serde::{Deserialize, Serialize};

use crate::{
    classifier::Classifier,
    metric::{LAST_STEP, Seen},
};

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

/// Images of a training step.
const BATCH: usize = 128;

/// Points of the curve of the test loss, and the images that each is measured on.
const CURVE_POINTS: u64 = 5;
const CURVE_IMAGES: usize = 2000;

/// Trains small networks on CIFAR-10 latents, equal in all but what a table compares, and measures them.
///
/// The same command resumes what was stopped or killed. Tables share the runs they have in common.
#[derive(Debug, Clone, clap::Args)]
pub struct Comparison {
    /// CIFAR-10 as image files: `train/<class>/<name>.jpg` and the same under test
    #[arg(long, value_name = "DIR", default_value = "out/cifar10")]
    pub photos: PathBuf,
    /// Weights of the classifier, as `ddt study classifier` writes them [default: the bundled ones]
    #[arg(long, value_name = "PATH")]
    pub classifier: Option<PathBuf>,
    /// Channels of the networks, a multiple of 64; the demo has 256
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = value_parser!(u32).range(64..=2048))]
    pub width: u32,
    /// Images that each network sees
    #[arg(long, value_name = "N", default_value_t = 102_400, value_parser = value_parser!(u64).range(1..=1_000_000_000))]
    pub images: u64,
    /// Seeds of each network; more may be asked for later
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    pub seeds: u32,
    /// Images generated with each network, always from the same noise
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = value_parser!(u32).range(200..=100_000))]
    pub samples: u32,
    /// Euler steps to generate them with
    #[arg(long, value_name = "N", default_value_t = 25)]
    pub steps: usize,
    /// Guidance of the second measurement; the first is without
    #[arg(long, value_name = "SCALE", default_value_t = 4.0)]
    pub guidance: f64,
    /// Folder of runs, results and tables; the same folder resumes them
    #[arg(long, value_name = "DIR", default_value = "out/reproduce")]
    pub out: PathBuf,
}

/// The measures of a trained network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its parameters.
    pub parameters: u64,
    /// Loss on the test latents, with the same noise and times for every network.
    pub test_loss: f64,
    /// Images generated without guidance.
    pub plain: Seen,
    /// Images generated with guidance.
    pub guided: Seen,
    /// Seconds of training, in the last process that trained.
    pub train_seconds: f64,
    /// Seconds of generating and measuring.
    pub measure_seconds: f64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "test loss {:.4}; {}; guided {}; {:.0} s of training, {:.0} s of measuring",
            self.test_loss, self.plain, self.guided, self.train_seconds, self.measure_seconds
        )
    }
}

impl Comparison {
    /// The grid and the guidance that images are generated with.
    pub(crate) fn sampler(&self) -> Result<(TimeGrid, Guidance)> {
        let grid = TimeGrid::new(self.steps, Some(LAST_STEP), 1.0).context("--steps")?;
        let guidance = Guidance::new(self.guidance, (0.0, 1.0)).context("--guidance")?;
        Ok((grid, guidance))
    }

    /// The folder of a run.
    pub(crate) fn folder(&self, system: System, seed: u32) -> PathBuf {
        self.out.join(system.run_name(seed))
    }

    /// The settings of a run.
    pub(crate) fn training(&self, system: System, seed: u32) -> Result<Settings> {
        let width = self.width as usize;
        ensure!(width.is_multiple_of(HEAD_DIM), "--width: expected a multiple of {HEAD_DIM}, got {width}");
        let images = ImageSettings {
            test: Some(self.photos.join("test")),
            cache: Some(self.photos.join("latents")),
            ..ImageSettings::plain(self.photos.join("train"), Classifier::SIDE as u32)
        };
        let train = TrainConfig {
            seed: seed.into(),
            batch_size: BATCH,
            total_images: self.images,
            lr: LrSchedule {
                peak: 1e-3,
                warmup_images: self.images / 10,
                decay_images: self.images / 2,
                end: 0.0,
            },
            ema_decays: vec![0.95],
            ..TrainConfig::paper()
        };
        let watch = WatchSettings {
            test_every: (self.images / BATCH as u64 / CURVE_POINTS).max(1),
            test_images: CURVE_IMAGES,
            ..WatchSettings::default()
        };
        let network = NetworkSettings::from(&system.network(width));
        let autoencoder = AutoencoderSettings::TinyFlux2;
        let settings = Settings::new(self.folder(system, seed), network, images, autoencoder);
        Ok(Settings { train, watch, ..settings })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use clap::{Args, Command, FromArgMatches};

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

    pub(crate) fn parse(line: &str) -> Result<Comparison, String> {
        let command = Comparison::augment_args(Command::new("program").no_binary_name(true));
        let matches = command.try_get_matches_from(line.split_whitespace()).map_err(|it| it.to_string())?;
        Ok(Comparison::from_arg_matches(&matches).unwrap())
    }

    #[test]
    fn runs_are_equal_but_for_network_seed_and_folder() {
        let comparison = parse("--images 5000").unwrap();
        for system in [Table::Split, Table::Decoder].iter().flat_map(|it| it.systems()) {
            let settings = comparison.training(system, 2).unwrap();
            settings.validate().unwrap();
            assert_eq!((settings.train.seed, settings.train.total_images), (2, 5000));
            assert_eq!(settings.run, comparison.folder(system, 2));
            let network = settings.network.clone().unwrap().config(32, 10).unwrap();
            assert_eq!(network, system.network(128));
            let mut first = comparison.training(System::DecoderOnly, 2).unwrap();
            (first.network, first.run) = (settings.network.clone(), settings.run.clone());
            assert_eq!(first, settings);
            // The file beside the run says the same.
            let text = toml::to_string(&settings).unwrap();
            assert_eq!(Settings::parse(&text).unwrap(), settings);
        }
    }

    #[test]
    fn wrong_flags_are_refused() {
        for (line, expected) in
            [("--seeds 0", "1..=100"), ("--samples 10", "200..=100000"), ("--width 32", "64..=2048")]
        {
            let message = parse(line).unwrap_err();
            assert!(message.contains(expected), "{line}: {message}");
        }
        let uneven = parse("--width 96").unwrap().training(System::DecoderOnly, 0).unwrap_err();
        assert!(uneven.to_string().contains("multiple of 64"), "{uneven}");
        assert!(parse("--steps 0").unwrap().sampler().unwrap_err().to_string().contains("--steps"));
    }
}
