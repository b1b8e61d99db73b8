//! The paper's comparisons of networks, at a scale that two cores train in minutes.
//!
//! [`settings`] says which networks a table compares, and how each is trained and measured. Each measured run is a line
//! of a file, and each training run a folder, so what was stopped resumes.

mod settings;

use std::{collections::BTreeMap, fmt::Write, sync::Arc, time::Instant};

use anyhow::{Context, Result};
use ddt::{
    Image, OutputFile, Pipeline, PipelineConfig,
    flow::{EULER, Guidance, TimeGrid},
    model::{DdtFile, SampleOptions},
};
use ddt_plot::{LinePlot, Series};
use ddt_train::{Alone, FileSystem, read_log};
use serde_json::json;

use self::settings::{BLOCKS, System};
pub use self::settings::{Comparison, Outcome, Table};
use crate::{
    classifier::Classifier,
    metric::OfflineMetric,
    study::{Folder, News, OnNews, ResultsFile, tell},
};

impl Comparison {
    /// Trains and measures the networks that are not measured yet, and writes a table and a plot of all of them;
    /// returns the table.
    ///
    /// # Errors
    /// Photos or weights that cannot be read, a folder that cannot be written, results of other settings;
    /// [`ddt::Error::Cancelled`] after a break, with everything saved.
    pub fn run(&self, table: Table, on_news: &mut OnNews<'_>) -> Result<String> {
        // Wrong settings are known before work.
        self.training(System::DecoderOnly, 0)?.validate()?;
        let (grid, guidance) = self.sampler()?;
        let (classifier, sha256) = Classifier::load(self.classifier.as_deref()).context("--classifier")?;
        let [page, figure] = ["md", "svg"].map(|ending| format!("{}.{ending}", table.name()));
        let folder = Folder::open(&self.out, &[&page, &figure])?;
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

        let text = markdown(table, self, &results)?;
        folder.write(&page, &text)?;
        folder.write(&figure, &plot(table, self)?)?;
        Ok(format!("{text}\nwrote {page} and {figure} to {}", self.out.display()))
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
        let (alone, disk) = (Arc::new(Alone), FileSystem::default());
        ddt_train::run(alone, &disk, &settings, &frozen, &weights, &mut |event| {
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

/// A comparison in Markdown: means over the seeds, each with the standard deviation between them.
///
/// Runs of one seed share the order of photos, noise and times, so differences to the first network are taken
/// seed by seed.
fn markdown(table: Table, study: &Comparison, results: &ResultsFile<Outcome>) -> Result<String> {
    let Comparison { images, seeds, samples, steps, guidance, .. } = study;
    let mut text = format!(
        "{images} images seen, {seeds} seeds, {samples} images generated in {steps} Euler steps, guidance {guidance} \
         in (0, 1); mean ± standard deviation between seeds.\n\n\
         | network | parameters | test loss | difference to the first | distance | class right | \
         distance, guided | class right, guided |\n|---|---|---|---|---|---|---|---|\n"
    );
    let systems = table.systems();
    let first = outcomes(systems.first().context("a table compares networks")?, *seeds, results)?;
    for system in &systems {
        let all = outcomes(system, *seeds, results)?;
        let of = |what: fn(&Outcome) -> f64| all.iter().map(what).collect::<Vec<f64>>();
        let differences: Vec<f64> =
            all.iter().zip(&first).map(|(it, first)| it.test_loss - first.test_loss).collect();
        let difference = if all == first { "-".to_owned() } else { signed(&differences) };
        writeln!(
            text,
            "| {} | {:.2} M | {} | {difference} | {} | {} | {} | {} |",
            system.name(),
            all.first().map_or(0.0, |it| it.parameters as f64 / 1e6),
            show(&of(|it| it.test_loss), 4),
            show(&of(|it| it.plain.distance), 2),
            show(&of(|it| 100.0 * it.plain.accuracy), 1) + " %",
            show(&of(|it| it.guided.distance), 2),
            show(&of(|it| 100.0 * it.guided.accuracy), 1) + " %",
        )?;
    }
    Ok(text)
}

/// The test loss against images seen, means over the seeds: the shape of the paper's Figs. 7 and 8.
fn plot(table: Table, study: &Comparison) -> Result<String> {
    let line = |system: &System| -> Result<Series> {
        let mut sums = BTreeMap::<u64, f64>::new();
        for seed in 0..study.seeds {
            for record in read_log(&study.folder(*system, seed))? {
                if let (Some(x), Some(y)) = (record["images_seen"].as_u64(), record["test_loss"].as_f64()) {
                    *sums.entry(x).or_default() += y / f64::from(study.seeds);
                }
            }
        }
        let points = sums.into_iter().map(|(x, y)| (x as f64, y)).collect();
        Ok(Series { name: system.name(), points })
    };
    let series: Vec<Series> = table.systems().iter().map(line).collect::<Result<_>>()?;
    let plot = LinePlot {
        title: "Loss on test latents, mean over the seeds",
        x_label: "images seen",
        y_label: "loss",
        log_y: false,
        series: &series,
    };
    Ok(plot.svg())
}

fn outcomes(system: &System, seeds: u32, results: &ResultsFile<Outcome>) -> Result<Vec<Outcome>> {
    let one = |seed| {
        let name = system.run_name(seed);
        results.get(&name).copied().with_context(|| format!("{name} is missing"))
    };
    (0..seeds).map(one).collect()
}

/// Mean and standard deviation, which is 0 for a single value.
fn mean_and_spread(values: &[f64]) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares = values.iter().map(|it| (it - mean).powi(2)).sum::<f64>();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

fn show(values: &[f64], decimals: usize) -> String {
    let (mean, spread) = mean_and_spread(values);
    format!("{mean:.decimals$} ± {spread:.decimals$}")
}

fn signed(values: &[f64]) -> String {
    let (mean, spread) = mean_and_spread(values);
    format!("{mean:+.4} ± {spread:.4}")
}

#[cfg(test)]
mod tests {
    use super::{settings::tests::parse, *};
    use crate::metric::Seen;

    #[test]
    fn means_spreads_and_differences_within_a_seed() {
        assert_eq!(mean_and_spread(&[1.0, 2.0, 3.0]), (2.0, 1.0));
        assert_eq!(mean_and_spread(&[5.0]), (5.0, 0.0));
        let folder = tempfile::tempdir().unwrap();
        let args = parse("--seeds 2").unwrap();
        let mut results = ResultsFile::open(&folder.path().join("results"), &serde_json::json!({})).unwrap();
        assert!(markdown(Table::Decoder, &args, &results).unwrap_err().to_string().contains("is missing"));
        for (i, system) in Table::Decoder.systems().iter().enumerate() {
            for seed in 0..2 {
                let seen = Seen { distance: 2.0, accuracy: 0.25 };
                // Seeds differ by 0.2, networks by 0.01 at either.
                let test_loss = 1.5 + 0.2 * f64::from(seed) + 0.01 * i as f64;
                let outcome = Outcome {
                    parameters: 2_000_000,
                    test_loss,
                    plain: seen,
                    guided: seen,
                    train_seconds: 1.0,
                    measure_seconds: 1.0,
                };
                results.add(system.run_name(seed), outcome).unwrap();
            }
        }
        let text = markdown(Table::Decoder, &args, &results).unwrap();
        let expected =
            "| ddt-6en2de-mlp | 2.00 M | 1.6200 ± 0.1414 | +0.0200 ± 0.0000 | 2.00 ± 0.00 | 25.0 ± 0.0 % |";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("| ddt-6en2de | 2.00 M | 1.6000 ± 0.1414 | - |"), "{text}");
    }
}
