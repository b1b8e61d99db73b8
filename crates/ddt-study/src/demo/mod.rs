//! The demo, measured by a metric that needs no download.
//!
//! [`settings`] lists the measurements, [`tables`] writes the results. Each measured setting is a line of a file, so a
//! study that was stopped resumes after it.

mod settings;
mod tables;

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use ddt::{
    Image, OutputFile, Pipeline, PipelineConfig,
    adapters::{Decode, Encode, TinyDecoder, TinyEncoder},
    files::Checkpoint,
    flow::{EULER, Guidance, NoiseSource, TimeGrid, solver_by_name},
    model::SampleOptions,
    sharing::{Planner, SharingPlan, Similarity},
};
use serde_json::json;

use self::settings::{DEMO_GUIDANCE, Measured, Sampling, Setting, Sharing, Stepping, settings};
pub use self::settings::{DemoStudy, Group};
use crate::{
    classifier::Classifier,
    metric::{LAST_STEP, OfflineMetric, Seen},
    news::{News, OnNews, tell},
    results::ResultsFile,
};

/// Images that the plans are made from, as in the published code.
const CALIBRATION_IMAGES: u32 = 8;

/// First column of the measured images: others than those that plans are made from.
const FIRST_COLUMN: u32 = 1000;

impl DemoStudy {
    /// Measures the settings that are not measured yet, and writes tables and plots of all of them; returns the tables.
    ///
    /// # Errors
    ///
    /// Photos or weights that cannot be read, a folder that cannot be written, results of other settings;
    /// [`ddt::Error::Cancelled`].
    pub fn run(&self, on_news: &mut OnNews<'_>) -> Result<String> {
        fs::create_dir_all(&self.out)
            .with_context(|| format!("--out: cannot make the folder {}", self.out.display()))?;
        let tables = OutputFile::new(&self.out.join("tables.md"), &[]).context("--out")?;
        let mut config = PipelineConfig::new(&self.weights);
        config.grid = TimeGrid::new(self.steps, Some(LAST_STEP), 1.0).context("--steps")?;
        TimeGrid::new(self.sweep_steps, Some(LAST_STEP), 1.0).context("--sweep-steps")?;
        let pipeline = Pipeline::new(&config).context("--weights")?;
        let (classes, (height, width)) = (pipeline.classes().len(), pipeline.image_size());
        ensure!(
            (classes, height, width) == (Classifier::CLASSES, Classifier::SIDE, Classifier::SIDE),
            "--weights: expected weights of CIFAR-10's 10 classes in 32 x 32 pixels, got {classes} classes in \
             {width} x {height}"
        );
        let (classifier, sha256) = Classifier::load(self.classifier.as_deref()).context("--classifier")?;
        let header = json!({
            "images": self.images, "steps": self.steps, "sweep_steps": self.sweep_steps,
            "network": pipeline.made_for().model(), "classifier": sha256,
        });
        let mut results = ResultsFile::open(&self.out.join("results.jsonl"), &header)?;
        let all = settings(self.groups(), self.steps, self.sweep_steps);
        let missing: Vec<_> = all.into_iter().filter(|it| results.get(&it.key()).is_none()).collect();
        if !missing.is_empty() {
            let metric = OfflineMetric::new(&self.photos, classifier, &sha256, &self.out, on_news)?;
            let mut bench = Bench { study: self, pipeline: &pipeline, metric, similarity: None };
            for setting in missing {
                let measured = bench.measure(&setting, on_news)?;
                results.add(setting.key(), measured)?;
                tell(on_news, News::Message(format!("{}: {measured}", setting.key())))?;
            }
        }
        let text = tables::markdown(self, &results)?;
        tables.write(text.as_bytes())?;
        for group in self.groups() {
            if let Some((name, plot)) = tables::plot(*group, self, &results) {
                OutputFile::new(&self.out.join(name), &[])?.write(plot.as_bytes())?;
            }
        }
        Ok(format!("{text}\nwrote tables and plots to {}", self.out.display()))
    }
}

/// The demo, the metric, and what plans are made from.
struct Bench<'a> {
    study: &'a DemoStudy,
    pipeline: &'a Pipeline,
    metric: OfflineMetric,
    /// Measured for the first plan.
    similarity: Option<Similarity>,
}

impl Bench<'_> {
    fn measure(&mut self, setting: &Setting, on_news: &mut OnNews<'_>) -> Result<Measured> {
        let started = Instant::now();
        let count = self.study.images as usize;
        let seen = match setting {
            Setting::Photos => self.metric.photos(count, on_news, |pixels| Ok(pixels.clone()))?,
            Setting::Reconstructions => {
                let open = |bytes| Checkpoint::from_bytes(bytes, "the bundled autoencoder");
                let encoder = TinyEncoder::load(&open(ddt_demo::TINY_ENCODER)?, DType::F32, &Device::Cpu)?;
                let decoder = TinyDecoder::load(&open(ddt_demo::TINY_DECODER)?, DType::F32, &Device::Cpu)?;
                let change = |pixels: &_| Ok(decoder.decode(&encoder.encode(pixels)?)?);
                self.metric.photos(count, on_news, change)?
            }
            Setting::Generated(sampling) => {
                let plan = self.plan(sampling, on_news)?;
                let Sampling { steps, guidance, from, .. } = *sampling;
                let grid = TimeGrid::new(steps, Some(LAST_STEP), 1.0)?;
                let guidance = Guidance::new(guidance, (from, 1.0))?;
                self.generate(SampleOptions { grid, solver: &EULER, guidance, plan: plan.as_ref() }, on_news)?
            }
            Setting::Stepped(Stepping { steps, solver, timeshift }) => {
                // Steps of one length: with few steps, a last one of the published length is far shorter than the
                // others.
                let grid = TimeGrid::new(*steps, None, *timeshift)?;
                let solver = solver_by_name(solver)?;
                let guidance = Guidance::new(DEMO_GUIDANCE, (0.0, 1.0))?;
                self.generate(SampleOptions { grid, solver: &*solver, guidance, plan: None }, on_news)?
            }
        };
        let generated = matches!(setting, Setting::Generated(_) | Setting::Stepped(_));
        Ok(Measured { seen, seconds: if generated { started.elapsed().as_secs_f64() } else { 0.0 } })
    }

    /// The same noise and classes for every setting.
    fn generate(&self, options: SampleOptions<'_>, on_news: &mut OnNews<'_>) -> Result<Seen> {
        let images = Image::spread(self.study.images, self.pipeline.classes().len(), FIRST_COLUMN);
        self.metric.generated(self.pipeline, &images, &options, on_news)
    }

    fn plan(&mut self, sampling: &Sampling, on_news: &mut OnNews<'_>) -> Result<Option<SharingPlan>> {
        Ok(match sampling.sharing {
            Sharing::None => None,
            Sharing::Uniform(budget) => Some(SharingPlan::uniform_budget(sampling.steps, budget)?),
            Sharing::Optimal(budget) => {
                // Plans are for the steps and guidance of the pipeline, which are those of the sharing table.
                let similarity = match self.similarity.take() {
                    Some(it) => it,
                    None => self.measure_similarity(on_news)?,
                };
                let plan = Planner::new(&similarity, budget)?.plan(budget)?.plan;
                self.similarity = Some(similarity);
                Some(plan)
            }
        })
    }

    fn measure_similarity(&self, on_news: &mut OnNews<'_>) -> Result<Similarity> {
        let images = Image::spread(CALIBRATION_IMAGES, self.pipeline.classes().len(), 0);
        let (work, total) = ("measuring the similarity on images", images.len() as u64);
        let mut watch = |progress: &ddt::Progress<'_>| {
            on_news(News::Progress { work, done: progress.finished as u64, total })
        };
        let statistic = self.pipeline.measure_similarity(&images, 0, NoiseSource::Counter, &mut watch)?;
        Ok(statistic.similarity()?)
    }
}
