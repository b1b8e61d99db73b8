//! One network: trained, and measured.

use std::{fmt, path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use ddt_flow::{EULER, Guidance, NoiseSource, TimeGrid};
use ddt_model::{DdtFile, SampleOptions};
use ddt_train::Settings;
use serde::{Deserialize, Serialize};

use crate::{
    atomic_file,
    offline_metric::{OfflineMetric, Painter, Seen},
    plan_sharing::spread,
    progress::Cancel,
    reproduce::{Args, systems::System},
    sampler_args::LAST_STEP,
    train::{self, frozen::decoder},
};

/// Images of a step.
const BATCH: u64 = 128;

/// Points of the curve of the test loss, and the images that each is measured on.
const CURVE_POINTS: u64 = 5;
const CURVE_IMAGES: usize = 2000;

/// What was measured of a trained network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its parameters.
    pub parameters: u64,
    /// Loss on the test latents, with the same noise and times for every network.
    pub test_loss: f64,
    /// Images drawn without guidance.
    pub plain: Seen,
    /// Images drawn with guidance.
    pub guided: Seen,
    /// Seconds that training took, in the last process that trained.
    pub train_seconds: f64,
    /// Seconds that drawing and looking took.
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

/// What all runs have in common.
pub struct Study<'a> {
    args: &'a Args,
    grid: TimeGrid,
    guidance: Guidance,
}

impl<'a> Study<'a> {
    /// Checks how images are drawn.
    ///
    /// # Errors
    ///
    /// Steps or guidance that cannot be.
    pub fn new(args: &'a Args) -> Result<Self> {
        let grid = TimeGrid::new(args.steps, Some(LAST_STEP), 1.0).context("--steps")?;
        let guidance = Guidance::new(args.guidance, (0.0, 1.0)).context("--guidance")?;
        Ok(Self { args, grid, guidance })
    }

    /// Trains, or goes on with the run, and measures.
    ///
    /// # Errors
    ///
    /// Photos that cannot be read, files that cannot be written;
    /// [`Interrupted`](crate::generate::Interrupted) after `cancel`, with everything saved.
    pub fn run(
        &self,
        system: &System,
        seed: u32,
        metric: &OfflineMetric<'_>,
        cancel: &Cancel,
    ) -> Result<Outcome> {
        let started = Instant::now();
        let text = self.settings(system, seed);
        // What `train --config` would take.
        let run = self.folder(system, seed);
        atomic_file::write(&run.with_extension("toml"), text.as_bytes())?;
        let settings = Settings::parse(&text)?;
        let weights = run.join("weights.safetensors");
        train::run(&settings, &weights, cancel)?;
        let train_seconds = started.elapsed().as_secs_f64();

        let file = DdtFile::open(&weights)?;
        let said = file.metadata().get("test_loss").context("the weights do not say their test loss")?;
        let network = file.load_network(None, DType::F32, &Device::Cpu)?;
        let info = file.latents().context("the weights do not say their latents")?;
        let decoder = decoder(&settings.autoencoder, info)?;
        let sizes = &network.config().sizes;
        let shape = (sizes.in_channels, info.height, info.width);
        let painter = Painter {
            network: &*network,
            decoder: &*decoder,
            noise: &|items| {
                let samples: Vec<u64> = items.iter().map(|it| it.sample()).collect();
                Ok(NoiseSource::Counter.batch(0, &samples, shape, &Device::Cpu)?)
            },
        };
        let items = spread(self.args.samples, sizes.num_classes, 0);
        let look = |guidance| {
            let options = SampleOptions { grid: self.grid.clone(), solver: &EULER, guidance, plan: None };
            metric.drawn(painter, &items, &options)
        };
        let shapes = network.config().parameter_shapes()?;
        Ok(Outcome {
            parameters: shapes.values().map(|it| it.iter().product::<usize>() as u64).sum(),
            test_loss: said.parse().context("the test loss in the weights")?,
            plain: look(Guidance::none())?,
            guided: look(self.guidance)?,
            train_seconds,
            measure_seconds: started.elapsed().as_secs_f64() - train_seconds,
        })
    }

    /// Where a run is.
    #[must_use]
    pub fn folder(&self, system: &System, seed: u32) -> PathBuf {
        self.args.out.join(system.run_name(seed))
    }

    /// The settings of a run: equal for all networks but for the network, the seed and the folder.
    fn settings(&self, system: &System, seed: u32) -> String {
        let path = |it: PathBuf| toml::Value::String(it.display().to_string());
        let (photos, images) = (&self.args.photos, self.args.images);
        format!(
            "run = {run}\n\n\
             [images]\ntrain = {train}\ntest = {test}\nsize = 32\ncache = {cache}\n\n\
             [autoencoder]\nkind = \"tiny-flux2\"\n\n\
             {network}\n\
             [train]\nseed = {seed}\nbatch_size = {BATCH}\ntotal_images = {images}\n\
             lr = {{ peak = 1e-3, warmup_images = {warmup}, decay_images = {decay} }}\nema_decays = [0.95]\n\n\
             [watch]\ntest_every = {test_every}\ntest_images = {CURVE_IMAGES}\n",
            run = path(self.folder(system, seed)),
            train = path(photos.join("train")),
            test = path(photos.join("test")),
            cache = path(photos.join("latents")),
            network = system.settings(self.args.width),
            warmup = images / 10,
            decay = images / 2,
            test_every = (images / BATCH / CURVE_POINTS).max(1),
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::{Parser, ValueEnum};

    use super::*;
    use crate::reproduce::systems::Table;

    #[test]
    fn runs_are_equal_but_for_network_seed_and_folder() {
        let args = Args::try_parse_from(["reproduce", "split", "--out", "out/\"study\""]).unwrap();
        let study = Study::new(&args).unwrap();
        for system in System::of_tables(Table::value_variants()) {
            let settings = Settings::parse(&study.settings(&system, 2)).unwrap();
            assert_eq!(settings.run, study.folder(&system, 2));
            assert_eq!((settings.train.seed, settings.train.total_images), (2, args.images));
            let network = settings.network.unwrap().config(32, 10).unwrap();
            let of_seed_0 = Settings::parse(&study.settings(&system, 0)).unwrap();
            assert_eq!(of_seed_0.network.unwrap().config(32, 10).unwrap(), network);
            let first = Settings::parse(&study.settings(&System::DecoderOnly, 2)).unwrap();
            assert_eq!((first.train, first.flow), (settings.train, settings.flow));
        }
    }
}
