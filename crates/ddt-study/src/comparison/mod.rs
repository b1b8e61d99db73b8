//! The paper's comparisons of networks, at a scale that two cores train in minutes.
//!
//! [`systems`] says which networks a table compares, [`settings`] how each is trained and measured, [`tables`] writes
//! the results. Each measured run is a line of a file, and each training run a folder, so what was stopped resumes.

mod settings;
mod systems;
mod tables;

use std::{fs, time::Instant};

use anyhow::{Context, Result};
use ddt::{
    Image, OutputFile, Pipeline, PipelineConfig,
    flow::{EULER, Guidance, TimeGrid},
    model::{DdtFile, SampleOptions},
};
use serde_json::json;

use self::systems::{BLOCKS, System};
pub use self::{
    settings::{Comparison, Outcome},
    systems::Table,
};
use crate::{
    classifier::Classifier,
    metric::OfflineMetric,
    news::{News, OnNews, tell},
    results::ResultsFile,
};

impl Comparison {
    /// Trains and measures the networks that are not measured yet, and writes a table and a plot of all of them;
    /// returns the table.
    ///
    /// # Errors
    ///
    /// Photos or weights that cannot be read, a folder that cannot be written, results of other settings;
    /// [`ddt::Error::Cancelled`] after a break, with everything saved.
    pub fn run(&self, table: Table, on_news: &mut OnNews<'_>) -> Result<String> {
        // Wrong settings are known before work.
        self.training(System::DecoderOnly, 0)?.validate()?;
        let (grid, guidance) = self.sampler()?;
        let (classifier, sha256) = Classifier::load(self.classifier.as_deref()).context("--classifier")?;
        fs::create_dir_all(&self.out)
            .with_context(|| format!("--out: cannot make the folder {}", self.out.display()))?;
        let output = |ending: &str| {
            OutputFile::new(&self.out.join(format!("{}.{ending}", table.name())), &[]).context("--out")
        };
        let (markdown, plot) = (output("md")?, output("svg")?);
        let header = json!({
            "width": self.width, "blocks": BLOCKS, "images": self.images, "samples": self.samples,
            "steps": self.steps, "guidance": self.guidance, "classifier": sha256,
        });
        let mut results = ResultsFile::open(&self.out.join("results.jsonl"), &header)?;

        // Seed after seed, so that every network has one before any has two.
        let systems = table.systems();
        let all = (0..self.seeds).flat_map(|seed| systems.iter().map(move |it| (*it, seed)));
        let missing: Vec<_> = all.filter(|it| results.get(&it.0.run_name(it.1)).is_none()).collect();
        if !missing.is_empty() {
            let metric = OfflineMetric::new(&self.photos, classifier, &sha256, &self.out, on_news)?;
            for (i, (system, seed)) in missing.iter().enumerate() {
                let name = system.run_name(*seed);
                tell(on_news, News::Message(format!("{name}, run {} of {}", i + 1, missing.len())))?;
                let outcome = self.measure(*system, *seed, &grid, guidance, &metric, on_news)?;
                results.add(name.clone(), outcome)?;
                tell(on_news, News::Message(format!("{name}: {outcome}")))?;
            }
        }

        let text = tables::markdown(table, self, &results)?;
        markdown.write(text.as_bytes())?;
        plot.write(tables::plot(table, self)?.as_bytes())?;
        Ok(format!("{text}\nwrote {} and {}", markdown.path().display(), plot.path().display()))
    }

    /// Trains a network, or resumes its run, and measures it.
    fn measure(
        &self,
        system: System,
        seed: u32,
        grid: &TimeGrid,
        guidance: Guidance,
        metric: &OfflineMetric,
        on_news: &mut OnNews<'_>,
    ) -> Result<Outcome> {
        let started = Instant::now();
        let settings = self.training(system, seed)?;
        // For `ddt train`.
        let file = settings.run.with_extension("toml");
        OutputFile::new(&file, &[])?.write(toml::to_string(&settings)?.as_bytes())?;
        let weights = settings.run.join("weights.safetensors");
        let frozen = crate::frozen_networks(&settings)?;
        ddt_train::run(&settings, &frozen, &weights, &mut |event| {
            on_news(News::Training(&settings, &event))
        })?;
        let train_seconds = started.elapsed().as_secs_f64();

        let file = DdtFile::open(&weights)?;
        let test_loss = file.metadata().get("test_loss").context("the weights do not say their test loss")?;
        let pipeline = Pipeline::new(&PipelineConfig::new(&weights))?;
        let images = Image::spread(self.samples, Classifier::CLASSES, 0);
        let mut look = |guidance| {
            let options = SampleOptions { grid: grid.clone(), solver: &EULER, guidance, plan: None };
            metric.generated(&pipeline, &images, &options, on_news)
        };
        let (plain, guided) = (look(Guidance::none())?, look(guidance)?);
        let shapes = system.network(self.width as usize).parameter_shapes()?;
        Ok(Outcome {
            parameters: shapes.values().map(|it| it.iter().product::<usize>() as u64).sum(),
            test_loss: test_loss.parse().context("the test loss in the weights")?,
            plain,
            guided,
            train_seconds,
            measure_seconds: started.elapsed().as_secs_f64() - train_seconds,
        })
    }
}
