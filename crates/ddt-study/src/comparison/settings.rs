//! Settings of a comparison: equal for all networks but for what the table compares.

use std::{fmt, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::value_parser;
use ddt::flow::{Guidance, TimeGrid};
use ddt_train::{
    AutoencoderSettings, ImageSettings, LrSchedule, NetworkSettings, Settings, TrainConfig, WatchSettings,
};
use serde::{Deserialize, Serialize};

use super::systems::{HEAD_DIM, System};
use crate::{
    classifier::Classifier,
    metric::{LAST_STEP, Seen},
};

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
            lr: LrSchedule { peak: 1e-3, warmup_images: self.images / 10, decay_images: self.images / 2 },
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
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;
    use crate::comparison::systems::Table;

    fn parse(line: &str) -> Result<Comparison, String> {
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
