//! Results of plans: a table, a report for programs, and pictures.

use std::cell::Cell;

use anyhow::{Context, Result};
use ddt::{
    ClassTable, Dtype, Image, Pipeline,
    flow::NoiseSource,
    picture::{Grid, HeatMap, Rgb8},
    sharing::{MadeFor, PlanWithCost, SharingPlan, SimilarityFile},
};
use ddt_study::{Batches, Mean, ways_with_plans};
use serde::Serialize;

use super::targets::{Planned, Speed, Target, settings_line};
use crate::terminal::Meter;

/// Images, the noise they start from, and how many are made at once.
#[derive(Debug, Clone)]
pub(crate) struct Trial {
    pub(crate) images: Vec<Image>,
    pub(crate) seed: u64,
    pub(crate) rng: NoiseSource,
    pub(crate) batch: usize,
}

/// The trial's images, sampled in one way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    batches: Batches,
    /// The images, if they were wanted.
    pictures: Vec<Rgb8>,
}

/// Samples the same images without sharing and with each plan, and keeps the pictures of those that are `shown`; the
/// first is without sharing.
///
/// Every batch is sampled in all ways before the next one, so that a machine that is busy for a while slows all ways
/// alike.
pub(crate) fn compare(
    pipeline: &Pipeline,
    trial: &Trial,
    plans: &[&SharingPlan],
    shown: impl Fn(usize) -> bool,
    meter: &mut Meter,
) -> Result<Vec<Outcome>> {
    let ways = ways_with_plans(pipeline, plans.iter().copied());
    let mut outcomes = vec![Outcome::default(); ways.len()];
    let (total, finished) = (trial.images.len() * outcomes.len(), Cell::new(0));
    for batch in trial.images.chunks(trial.batch) {
        let mut watch = |progress: &ddt::Progress<'_>| meter.images(&progress.within(finished.get(), total));
        let noise = pipeline.noise(batch, trial.seed, trial.rng)?;
        let timed = ddt_study::compare(pipeline, batch, &noise, &ways, &mut watch, |way, latents| {
            finished.set(finished.get() + batch.len());
            if shown(way) {
                outcomes[way].pictures.extend(pipeline.decode(latents)?);
            }
            Ok(())
        })?;
        outcomes.iter_mut().zip(&timed).for_each(|(sum, it)| sum.batches.add(it));
    }
    Ok(outcomes)
}

/// Everything that was found out; `report.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: &'static str,
    made_for: MadeFor,
    dtype: Dtype,
    seed: u64,
    rng: NoiseSource,
    /// Images that the similarity was measured on.
    calibration_images: Vec<Sample>,
    /// Images that the plans were compared on; none where they were not.
    test_images: Vec<Sample>,
    /// Test images generated together.
    batch: usize,
    speed: Speed,
    #[serde(skip_serializing_if = "Option::is_none")]
    unshared_seconds_per_image: Option<f64>,
    plans: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Sample {
    label: u32,
    /// Sample number, which fixes the noise together with the seed.
    sample: u64,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    target: Target,
    sharing_ratio: f64,
    num_recompute: usize,
    uniform: Entry,
    optimal: Entry,
    /// Error of the uniform plan minus that of the optimal one, paired over test images.
    #[serde(skip_serializing_if = "Option::is_none")]
    gain: Option<Mean>,
}

#[derive(Debug, Serialize)]
struct Entry {
    recompute_steps: Vec<usize>,
    cost: f64,
    /// Mean error of the self-condition in use at a step: a dissimilarity for order 0, else a relative error.
    mean_error: f64,
    predicted_speedup: f64,
    #[serde(flatten)]
    measured: Option<Measured>,
}

#[derive(Debug, Serialize)]
struct Measured {
    measured_speedup: f64,
    /// Over test images, the relative root mean square error to the latents without sharing.
    latent_error: Mean,
}

/// Outcomes of sampling without sharing and with each plan.
#[derive(Debug)]
pub(crate) struct Compared {
    /// Sampling with the encoder at every step.
    pub(crate) unshared: Outcome,
    /// Sampling with the uniform and the optimal plan, in the order of the plans.
    pub(crate) shared: Vec<[Outcome; 2]>,
}

impl Report {
    /// Gathers the findings; `compared` is absent where no images were generated.
    ///
    /// # Errors
    /// Those of [`Speed::predict`].
    pub(crate) fn new(
        pipeline: &Pipeline,
        calibration: &[Image],
        trial: &Trial,
        speed: Speed,
        planned: &[Planned],
        compared: Option<&Compared>,
    ) -> Result<Self> {
        let samples = |images: &[Image]| {
            images.iter().map(|it| Sample { label: it.label, sample: it.sample() }).collect()
        };
        let mut plans = Vec::with_capacity(planned.len());
        for (index, it) in planned.iter().enumerate() {
            let entry = |half: usize, plan: &PlanWithCost| -> Result<Entry> {
                let outcome =
                    compared.and_then(|all| Some((&all.unshared, all.shared.get(index)?.get(half)?)));
                Ok(Entry {
                    recompute_steps: plan.plan.recompute_steps().to_vec(),
                    cost: plan.cost,
                    mean_error: plan.mean_error(),
                    predicted_speedup: speed.predict(&plan.plan)?,
                    measured: outcome.map(|(unshared, shared)| Measured {
                        measured_speedup: shared.batches.faster_than(&unshared.batches),
                        latent_error: shared.batches.error(),
                    }),
                })
            };
            let gain = compared.and_then(|all| all.shared.get(index));
            let gain = gain.map(|[uniform, optimal]| uniform.batches.gain(&optimal.batches));
            plans.push(Row {
                gain,
                name: it.target.to_string(),
                target: it.target,
                sharing_ratio: it.optimal.plan.sharing_ratio(),
                num_recompute: it.optimal.plan.num_recompute(),
                uniform: entry(0, &it.uniform)?,
                optimal: entry(1, &it.optimal)?,
            });
        }
        Ok(Self {
            version: ddt::VERSION,
            made_for: pipeline.made_for().clone(),
            dtype: pipeline.config().dtype,
            seed: trial.seed,
            rng: trial.rng,
            calibration_images: samples(calibration),
            test_images: samples(&trial.images),
            batch: trial.batch,
            speed,
            unshared_seconds_per_image: compared.map(|all| all.unshared.batches.seconds_per_image),
            plans,
        })
    }

    /// The text of the JSON file.
    ///
    /// # Errors
    /// None in practice: there is nothing in a report that JSON does not know.
    pub(crate) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// One line for each plan; mean error and speed-ups are the optimal plan's.
    pub(crate) fn table(&self) -> String {
        let heads = ["", "", "", "uniform", "optimal", "mean", "predicted", "measured", "uniform", "optimal"];
        let units = [
            "plan",
            "ratio",
            "runs",
            "cost",
            "cost",
            "error",
            "speed-up",
            "speed-up",
            "image error",
            "image error",
        ];
        let mut text = line(&heads) + &line(&units);
        for Row { name, sharing_ratio, num_recompute, uniform, optimal, .. } in &self.plans {
            let measured = |entry: &Entry, show: fn(&Measured) -> String| {
                entry.measured.as_ref().map_or_else(|| "-".to_owned(), show)
            };
            text += &line(&[
                name.clone(),
                format!("{sharing_ratio:.2}"),
                num_recompute.to_string(),
                format!("{:.4}", uniform.cost),
                format!("{:.4}", optimal.cost),
                format!("{:.5}", optimal.mean_error),
                format!("{:.2}x", optimal.predicted_speedup),
                measured(optimal, |it| format!("{:.2}x", it.measured_speedup)),
                measured(uniform, |it| it.latent_error.to_string()),
                measured(optimal, |it| it.latent_error.to_string()),
            ]);
        }
        text
    }
}

/// One line of the table, its cells aligned to the right.
fn line<S: AsRef<str>>(cells: &[S; 10]) -> String {
    const WIDTHS: [usize; 10] = [16, 5, 4, 8, 8, 8, 9, 8, 17, 17];
    let aligned = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{:>width$}", cell.as_ref()));
    aligned.collect::<Vec<_>>().join("  ") + "\n"
}

/// The similarity as a picture, as Fig. 5 of arXiv:2504.05741.
///
/// # Errors
/// None in practice: a similarity is a finite square matrix.
pub(crate) fn heat_map(measured: &SimilarityFile) -> Result<Rgb8> {
    let SimilarityFile { images, similarity, .. } = measured;
    let least = similarity.values().iter().copied().fold(1.0, f64::min);
    let map = HeatMap {
        values: similarity.values(),
        size: similarity.num_steps(),
        // A round number, below 1 even where all steps are alike.
        low: ((least * 20.0).floor() / 20.0).min(0.95),
        high: 1.0,
        title: &format!("mean cosine of z_t, {images} images"),
        axis: "sampling step",
    };
    Ok(map.draw()?)
}

/// The words around the test images.
pub(crate) struct Texts {
    rows: Vec<String>,
    columns: Vec<String>,
    footer: String,
}

impl Texts {
    /// Texts of a page with a row without sharing and one for each target.
    pub(crate) fn new(classes: &ClassTable, images: &[Image], rows: Vec<String>, footer: String) -> Self {
        // Synonyms are for finding a class, not for its label.
        let short = |name: &str| name.split(',').next().unwrap_or_default().to_owned();
        let name = |it: &Image| short(classes.name(it.label).unwrap_or_default());
        Self { rows, columns: images.iter().map(name).collect(), footer }
    }

    pub(crate) fn grid<'a>(&'a self, images: &'a [Rgb8]) -> Grid<'a> {
        let title = "no sharing and optimal plans";
        Grid { row_labels: &self.rows, column_labels: &self.columns, images, title, footer: &self.footer }
    }
}

/// The same images without sharing and with each optimal plan, as Fig. 6 of arXiv:2504.05741: a row for each plan, a
/// column for each image.
pub(crate) fn image_page(
    pipeline: &Pipeline,
    trial: &Trial,
    planned: &[Planned],
    compared: &Compared,
) -> Result<Rgb8> {
    let mut rows = vec!["no sharing".to_owned()];
    let mut images = compared.unshared.pictures.clone();
    for (plan, [_, optimal]) in planned.iter().zip(&compared.shared) {
        let runs = plan.optimal.plan.num_recompute();
        rows.push(match plan.target {
            Target::Ratio(ratio) => format!("{ratio}: {runs} runs"),
            Target::WorstQuality(at_least) => format!("all similar {at_least}: {runs} runs"),
            Target::Quality(at_least) => format!("similar {at_least}: {runs} runs"),
            Target::Error(at_most) => format!("error {at_most}: {runs} runs"),
            Target::WorstError(at_most) => format!("every error {at_most}: {runs} runs"),
        });
        images.extend_from_slice(&optimal.pictures);
    }
    let made_for: &MadeFor = pipeline.made_for();
    let footer = format!("{}, seed {}, {}", settings_line(made_for), trial.seed, made_for.model());
    Texts::new(pipeline.classes(), &trial.images, rows, footer).grid(&images).draw().context("images.png")
}
