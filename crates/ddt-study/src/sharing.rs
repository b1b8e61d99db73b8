//! Error and speed-up of shared self-conditions, by order and ratio.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
    fs,
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context, Result};
use candle_core::Tensor;
use clap::value_parser;
use ddt::{
    Image, Pipeline,
    flow::NoiseSource,
    model::{SampleOptions, VelocityNetwork},
    relative_errors,
    sharing::{ForecastOrder, SharingPlan, SimilarityFile, predicted_speedup_guided},
};
use ddt_plot::{LinePlot, Series};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    state_forecast::sample_by_states,
    study::{Folder, News, OnNews, ResultsFile, Subject, measure_similarity},
};

/// Files that are written, beside `results.jsonl`.
const FILES: [&str; 4] = ["similarity.json", "table.md", "errors.svg", "report.json"];

/// Measures reuse and forecasts of the self-condition on one network: error and time for each order, ratio and kind of
/// plan.
///
/// Plans are made from some images, and compared on others, all from the same noise. The same command resumes what was
/// stopped or killed.
#[derive(Debug, Clone, clap::Args)]
pub struct SharingStudy {
    /// Sharing ratios: the share of steps that skip the condition encoder, each in [0, 1)
    #[arg(long, value_name = "RATIO,...", value_delimiter = ',', default_value = "0.5,0.66,0.75,0.8,0.87,0.9,0.95",
          value_parser = parse_ratio)]
    pub ratios: Vec<f64>,
    /// Orders of the forecasts: 0 (reuse, as in the paper), 1 and 2
    #[arg(long, value_name = "ORDER,...", value_delimiter = ',', default_value = "0,1,2")]
    pub orders: Vec<ForecastOrder>,
    /// Images that plans are made from
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u32).range(1..=100_000))]
    pub calibration_images: u32,
    /// Other images, which plans are compared on
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = value_parser!(u32).range(2..=100_000))]
    pub images: u32,
    /// Measure, beside forecasts of the decoder's modulations, forecasts of the self-condition itself: the two differ
    /// where modulations are not linear in it, as in DiT^DH
    #[arg(long)]
    pub states: bool,
    /// Folder of the results; the same folder resumes them
    #[arg(long, value_name = "DIR", default_value = "out/sharing-study")]
    pub out: PathBuf,
}

/// Reads a sharing ratio.
///
/// # Errors
/// Says what was expected, unless it is in [0, 1).
pub fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio = text.trim().parse().ok().filter(|it| (0.0..1.0).contains(it));
    // The sum makes 0 of -0, which would be written with its sign.
    ratio.map(|it: f64| it + 0.0).ok_or_else(|| "expected a ratio from 0 to below 1, such as 0.8".to_owned())
}

/// The values in their order, without repetitions.
fn each_once<T: Copy + PartialEq>(values: &[T]) -> Vec<T> {
    let mut once = Vec::with_capacity(values.len());
    for &value in values {
        if !once.contains(&value) {
            once.push(value);
        }
    }
    once
}

/// A mean over images and half its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// 1.96 standard errors of the mean.
    pub ci95: f64,
}

impl Mean {
    /// Mean and interval of values; a single value has no interval.
    pub fn of(values: impl ExactSizeIterator<Item = f64> + Clone) -> Self {
        let count = values.len() as f64;
        let mean = values.clone().sum::<f64>() / count;
        let variance = values.map(|it| (it - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        Self { mean, ci95: 1.96 * (variance / count).sqrt() }
    }
}

impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(5);
        write!(f, "{:.digits$} ± {:.digits$}", self.mean, self.ci95)
    }
}

/// A batch of images that was sampled in one way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Time from noise to latents.
    pub seconds: f64,
    /// Relative RMS error of each image's latents to those without sharing.
    pub errors: Vec<f64>,
}

/// All batches of images that were sampled in one way.
#[derive(Debug, Clone, PartialEq)]
pub struct Batches {
    /// Time from noise to latents, of the fastest batch: other programs only make batches slower.
    pub seconds_per_image: f64,
    /// Relative RMS error of each image's latents to those without sharing.
    pub errors: Vec<f64>,
}

impl Default for Batches {
    fn default() -> Self {
        Self { seconds_per_image: f64::INFINITY, errors: Vec::new() }
    }
}

impl Batches {
    /// Adds a batch.
    pub fn add(&mut self, batch: &Batch) {
        self.seconds_per_image = self.seconds_per_image.min(batch.seconds / batch.errors.len() as f64);
        self.errors.extend(&batch.errors);
    }

    /// Mean error of the latents.
    #[must_use]
    pub fn error(&self) -> Mean {
        Mean::of(self.errors.iter().copied())
    }

    /// Mean of this error minus that of `other`, paired by image.
    #[must_use]
    pub fn gain(&self, other: &Self) -> Mean {
        Mean::of(self.errors.iter().zip(&other.errors).map(|(own, other)| own - other))
    }

    /// Speed-up over `other`.
    #[must_use]
    pub fn faster_than(&self, other: &Self) -> f64 {
        other.seconds_per_image / self.seconds_per_image
    }
}

/// Samples the same images from the same noise in several ways; errors are relative to the first. `sampled` sees the
/// latents of each way.
///
/// # Errors
/// Those of [`Pipeline::sample_with`].
pub fn compare(
    pipeline: &Pipeline,
    images: &[Image],
    noise: &Tensor,
    ways: &[SampleOptions<'_>],
    watch: &mut ddt::Watch<'_>,
    mut sampled: impl FnMut(usize, &Tensor) -> Result<()>,
) -> Result<Vec<Batch>> {
    let mut reference = None;
    let measure = |(way, options): (usize, &SampleOptions<'_>)| {
        let started = Instant::now();
        let latents = pipeline.sample_with(images, noise, options, watch)?.latents;
        let seconds = started.elapsed().as_secs_f64();
        sampled(way, &latents)?;
        let reference = reference.get_or_insert_with(|| latents.clone());
        Ok(Batch { seconds, errors: relative_errors(&latents, reference)? })
    };
    ways.iter().enumerate().map(measure).collect()
}

/// The pipeline's sampler without sharing, and with each of the plans.
pub fn ways_with_plans<'a>(
    pipeline: &'a Pipeline,
    plans: impl IntoIterator<Item = &'a SharingPlan>,
) -> Vec<SampleOptions<'a>> {
    let plans = plans.into_iter().map(|it| pipeline.sample_options(Some(it)));
    std::iter::once(pipeline.sample_options(None)).chain(plans).collect()
}

/// A plan to measure.
struct Way {
    order: ForecastOrder,
    ratio: f64,
    planned: bool,
    plan: SharingPlan,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Row {
    order: ForecastOrder,
    ratio: f64,
    planned: bool,
    recompute_steps: Vec<usize>,
    predicted_speedup: f64,
    measured_speedup: f64,
    error: Mean,
    /// Error with forecasts of the self-condition itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_by_states: Option<Mean>,
    /// For a planned way: the uniform plan's error minus its own, paired by image.
    #[serde(skip_serializing_if = "Option::is_none")]
    gain: Option<Mean>,
}

impl SharingStudy {
    /// Measures what is not measured yet, and writes table, plot and report; returns the table.
    ///
    /// # Errors
    /// A network without two halves; a folder that cannot be written, or has results of other settings;
    /// [`ddt::Error::Cancelled`].
    pub fn run(&self, subject: Subject, on_news: &mut OnNews<'_>) -> Result<String> {
        let Subject { opened, seed, rng, batch } = subject;
        let folder = Folder::open(&self.out, &FILES)?;
        let pipeline = opened.load()?;
        let header = json!({
            "made_for": pipeline.made_for(), "seed": seed, "rng": rng, "batch": batch, "images": self.images,
            "calibration_images": self.calibration_images, "ratios": each_once(&self.ratios),
            "orders": each_once(&self.orders), "states": self.states,
        });
        let mut results = ResultsFile::open(&self.out.join("results.jsonl"), &header)?;
        let ways = self.ways(&self.measure(&pipeline, seed, rng, &folder, on_news)?, &pipeline)?;
        let options = ways_with_plans(&pipeline, ways.iter().map(|it| &it.plan));

        let classes = pipeline.classes().len();
        let first = (self.calibration_images as usize).div_ceil(classes) as u32;
        let images = Image::spread(self.images, classes, first);
        let total = images.len() as u64;
        let mut all = vec![Batches::default(); ways.len() + 1];
        let mut by_states = vec![Vec::new(); ways.len()];
        for (index, images) in images.chunks(batch).enumerate() {
            let key = format!("batch {index}");
            if results.get(&key).is_none() {
                let done = (index * batch) as u64;
                let watch = &mut |_: &ddt::Progress<'_>| {
                    on_news(News::Progress { work: "generating images in every way", done, total })
                };
                let noise = pipeline.noise(images, seed, rng)?;
                let mut reference = None;
                let measured = compare(&pipeline, images, &noise, &options, watch, |way, latents| {
                    if way == 0 {
                        reference = Some(latents.clone());
                    }
                    Ok(())
                })?;
                let errors = match (self.states, &reference, pipeline.network()) {
                    (true, Some(reference), Some(network)) => {
                        errors_by_states(network, images, &noise, &options[1..], reference)?
                    }
                    _ => Vec::new(),
                };
                results.add(key.clone(), (measured, errors))?;
            }
            let (measured, errors): &(Vec<Batch>, Vec<Vec<f64>>) =
                results.get(&key).context("a result is missing")?;
            all.iter_mut().zip(measured).for_each(|(sum, it)| sum.add(it));
            by_states.iter_mut().zip(errors).for_each(|(sum, it)| sum.extend(it));
        }
        let rows = rows(&pipeline, &ways, &all, &by_states)?;
        let table = self.table(&rows)?;
        folder.write("table.md", &table)?;
        folder.write("errors.svg", &plot(&pipeline, &rows))?;
        let report = json!({
            "program": "ddt study sharing", "version": ddt::VERSION, "pipeline": pipeline.config(),
            "settings": header, "unshared_seconds_per_image": all[0].seconds_per_image, "plans": rows,
        });
        folder.write("report.json", &serde_json::to_string_pretty(&report)?)?;
        Ok(format!("{table}\nwrote {} to {}", FILES.join(", "), self.out.display()))
    }

    /// The measurement that plans are made from, read if it is there.
    fn measure(
        &self,
        pipeline: &Pipeline,
        seed: u64,
        rng: NoiseSource,
        folder: &Folder<'_>,
        on_news: &mut OnNews<'_>,
    ) -> Result<SimilarityFile> {
        let images = Image::spread(self.calibration_images, pipeline.classes().len(), 0);
        // The header of the results has checked the other settings.
        let kept = fs::read(self.out.join(FILES[0])).ok().and_then(|it| SimilarityFile::from_json(&it).ok());
        let fits = |it: &SimilarityFile| {
            it.check(pipeline.made_for()).is_ok() && (it.seed, it.images) == (seed, images.len())
        };
        if let Some(kept) = kept.filter(fits) {
            return Ok(kept);
        }
        let measured = measure_similarity(pipeline, &images, seed, rng, on_news)?;
        folder.write(FILES[0], &measured.to_json()?)?;
        Ok(measured)
    }

    fn ways(&self, measured: &SimilarityFile, pipeline: &Pipeline) -> Result<Vec<Way>> {
        let mut ways = Vec::new();
        for order in each_once(&self.orders) {
            let planner = pipeline.planner(measured, order)?;
            for ratio in each_once(&self.ratios) {
                let budget = planner.budget_for_ratio(ratio);
                for (planned, plan) in [(false, planner.uniform(budget)?), (true, planner.plan(budget)?)] {
                    ways.push(Way { order, ratio, planned, plan: plan.plan });
                }
            }
        }
        Ok(ways)
    }

    /// Errors by ratio; bold where a plan is better than uniform steps, outside the interval of the paired difference.
    fn table(&self, rows: &[Row]) -> Result<String> {
        let mut text = "| ratio | runs |".to_owned();
        let orders = each_once(&self.orders);
        for order in &orders {
            write!(text, " order {order}, uniform | order {order}, planned |")?;
        }
        writeln!(text, "\n|---|---|{}", "---|---|".repeat(orders.len()))?;
        for ratio in each_once(&self.ratios) {
            let of_ratio = || rows.iter().filter(|it| it.ratio == ratio);
            // Forecasts need a run in every 64 steps, reuse does not.
            let runs: BTreeSet<usize> = of_ratio().map(|it| it.recompute_steps.len()).collect();
            let runs: Vec<String> = runs.iter().map(usize::to_string).collect();
            write!(text, "| {ratio} | {} |", runs.join(", "))?;
            for it in of_ratio() {
                let better = it.gain.is_some_and(|it| it.mean > it.ci95);
                let bold = if better { "**" } else { "" };
                write!(text, " {bold}{}{bold}", it.error)?;
                if let Some(error) = it.error_by_states {
                    write!(text, " (by states {error})")?;
                }
                write!(text, " |")?;
            }
            writeln!(text)?;
        }
        Ok(text)
    }
}

/// Errors of each image in every way, with forecasts of the self-condition.
fn errors_by_states(
    network: &dyn VelocityNetwork,
    images: &[Image],
    noise: &Tensor,
    ways: &[SampleOptions<'_>],
    reference: &Tensor,
) -> Result<Vec<Vec<f64>>> {
    let labels: Vec<u32> = images.iter().map(|it| it.label).collect();
    let measure =
        |options| Ok(relative_errors(&sample_by_states(network, noise, &labels, options)?, reference)?);
    ways.iter().map(measure).collect()
}

fn rows(pipeline: &Pipeline, ways: &[Way], all: &[Batches], by_states: &[Vec<f64>]) -> Result<Vec<Row>> {
    let config = pipeline.config();
    let network = config.network.as_ref().context("the network has no description")?;
    let (_, height, width) = pipeline.latent_shape();
    let operations = network.operation_counts(height, width);
    let guided = config.guidance.map(|it| it.guided_steps(config.grid())).unwrap_or_default();
    let (unshared, shared) = all.split_first().context("nothing was measured")?;
    let mut rows = Vec::with_capacity(ways.len());
    for (index, ((way, measured), by_states)) in ways.iter().zip(shared).zip(by_states).enumerate() {
        rows.push(Row {
            order: way.order,
            ratio: way.ratio,
            planned: way.planned,
            recompute_steps: way.plan.recompute_steps().to_vec(),
            predicted_speedup: predicted_speedup_guided(&way.plan, &operations, &guided)?,
            measured_speedup: measured.faster_than(unshared),
            error: measured.error(),
            error_by_states: (!by_states.is_empty()).then(|| Mean::of(by_states.iter().copied())),
            // The uniform plan is the one before.
            gain: way.planned.then(|| shared[index - 1].gain(measured)),
        });
    }
    Ok(rows)
}

/// Error by time, a line for each order and kind of plan.
fn plot(pipeline: &Pipeline, rows: &[Row]) -> String {
    let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows {
        let kind = if row.planned { "planned" } else { "uniform" };
        let line = lines.entry(format!("order {}, {kind}", row.order)).or_default();
        line.push((1.0 / row.measured_speedup, row.error.mean));
    }
    let series: Vec<Series> = lines.into_iter().map(|(name, points)| Series { name, points }).collect();
    let steps = pipeline.config().grid().num_steps();
    let plot = LinePlot {
        title: &format!("Sharing the self-condition, {steps} steps"),
        x_label: "time of a run, relative to one without sharing",
        y_label: "relative RMS error of the latents",
        log_y: true,
        series: &series,
    };
    plot.svg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_of_the_mean() {
        // Variance 4 of 4 values.
        let it = Mean::of([1.0, 1.0, 1.0, 5.0].into_iter());
        assert!((it.mean - 2.0).abs() < 1e-12 && (it.ci95 - 1.96).abs() < 1e-12);
        assert_eq!(Mean::of([3.0].into_iter()), Mean { mean: 3.0, ci95: 0.0 });
        let measured = |batches: &[(f64, [f64; 2])]| {
            let mut all = Batches::default();
            batches
                .iter()
                .for_each(|&(seconds, errors)| all.add(&Batch { seconds, errors: errors.to_vec() }));
            all
        };
        let slow = measured(&[(4.0, [0.5, 0.75]), (9.0, [0.75, 0.75])]);
        let fast = measured(&[(8.0, [0.25, 0.5]), (2.0, [0.5, 0.5])]);
        assert_eq!(slow.gain(&fast), Mean { mean: 0.25, ci95: 0.0 });
        assert_eq!(fast.faster_than(&slow), 2.0);
    }
}
