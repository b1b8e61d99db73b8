//! What is said about plans: a table, a report for programs, and pictures.

use anyhow::Result;
use ddt_flow::NoiseSource;
use ddt_sharing::{MadeFor, PlanWithCost, SimilarityFile};
use serde::Serialize;

use super::comparison::Outcome;
use super::plans::{Planned, Speed, Target, settings_line};
use crate::generate::Item;
use crate::grid::Grid;
use crate::heat_map::HeatMap;
use crate::job::Job;
use crate::picture::Picture;
use crate::sampler_args::Dtype;

/// Everything that was found out; `report.json`.
#[derive(Debug, Serialize)]
pub struct Report {
    program: &'static str,
    version: &'static str,
    made_for: MadeFor,
    dtype: Dtype,
    seed: u64,
    rng: NoiseSource,
    /// Images that the similarity was measured on.
    calibration_images: Vec<Image>,
    /// Images that the plans were compared on; none where they were not.
    test_images: Vec<Image>,
    /// Of the test images, drawn at once.
    batch: usize,
    speed: Speed,
    #[serde(skip_serializing_if = "Option::is_none")]
    unshared_seconds_per_image: Option<f64>,
    plans: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Image {
    label: u32,
    /// With the seed it fixes the noise.
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
}

#[derive(Debug, Serialize)]
struct Entry {
    recompute_steps: Vec<usize>,
    cost: f64,
    mean_similarity: f64,
    predicted_speedup: f64,
    #[serde(flatten)]
    measured: Option<Measured>,
}

#[derive(Debug, Serialize)]
struct Measured {
    measured_speedup: f64,
    /// Mean over test images of the relative root mean square error to the latents without sharing.
    latent_error: f64,
}

/// The outcomes of drawing without sharing, and with each plan (uniform, optimal).
#[derive(Debug)]
pub struct Compared {
    /// At every step.
    pub unshared: Outcome,
    /// In the order of the plans.
    pub shared: Vec<[Outcome; 2]>,
}

impl Report {
    /// Gathers the findings; `compared` is absent where no images were drawn.
    ///
    /// # Errors
    ///
    /// Those of [`Speed::predict`].
    pub fn new(
        job: &Job,
        made_for: &MadeFor,
        (calibration, test): (&[Item], &[Item]),
        speed: Speed,
        planned: &[Planned],
        compared: Option<&Compared>,
    ) -> Result<Self> {
        let images = |items: &[Item]| {
            items.iter().map(|item| Image { label: item.label, sample: item.sample() }).collect()
        };
        let mut plans = Vec::with_capacity(planned.len());
        for (index, it) in planned.iter().enumerate() {
            let entry = |half: usize, plan: &PlanWithCost| -> Result<Entry> {
                let outcome =
                    compared.and_then(|all| Some((&all.unshared, all.shared.get(index)?.get(half)?)));
                Ok(Entry {
                    recompute_steps: plan.plan.recompute_steps().to_vec(),
                    cost: plan.cost,
                    mean_similarity: plan.mean_similarity(),
                    predicted_speedup: speed.predict(&plan.plan)?,
                    measured: outcome.map(|(unshared, shared)| Measured {
                        measured_speedup: unshared.elapsed.as_secs_f64() / shared.elapsed.as_secs_f64(),
                        latent_error: shared.latent_error,
                    }),
                })
            };
            plans.push(Row {
                name: it.target.to_string(),
                target: it.target,
                sharing_ratio: it.optimal.plan.sharing_ratio(),
                num_recompute: it.optimal.plan.num_recompute(),
                uniform: entry(0, &it.uniform)?,
                optimal: entry(1, &it.optimal)?,
            });
        }
        Ok(Self {
            program: "plan_sharing",
            version: env!("CARGO_PKG_VERSION"),
            made_for: made_for.clone(),
            dtype: job.dtype,
            seed: job.seed,
            rng: job.rng,
            calibration_images: images(calibration),
            test_images: images(test),
            batch: job.batch,
            speed,
            unshared_seconds_per_image: compared
                .map(|all| all.unshared.elapsed.as_secs_f64() / test.len().max(1) as f64),
            plans,
        })
    }

    /// The text of the JSON file.
    ///
    /// # Errors
    ///
    /// None in practice: there is nothing in a report that JSON does not know.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// One line a plan; similarity and speed-ups are the optimal plan's.
    #[must_use]
    pub fn table(&self) -> String {
        let heads = ["", "", "", "uniform", "optimal", "mean", "predicted", "measured", "uniform", "optimal"];
        let units =
            ["plan", "ratio", "runs", "cost", "cost", "similarity", "speed-up", "speed-up", "error", "error"];
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
                format!("{:.4}", optimal.mean_similarity),
                format!("{:.2}x", optimal.predicted_speedup),
                measured(optimal, |it| format!("{:.2}x", it.measured_speedup)),
                measured(uniform, |it| format!("{:.4}", it.latent_error)),
                measured(optimal, |it| format!("{:.4}", it.latent_error)),
            ]);
        }
        text
    }
}

/// One line of the table, its cells aligned to the right.
fn line<S: AsRef<str>>(cells: &[S; 10]) -> String {
    const WIDTHS: [usize; 10] = [12, 5, 4, 8, 8, 10, 9, 8, 8, 8];
    let aligned = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{:>width$}", cell.as_ref()));
    aligned.collect::<Vec<_>>().join("  ") + "\n"
}

/// The similarity as a picture, as Fig. 5 of arXiv:2504.05741.
///
/// # Errors
///
/// None in practice: a similarity is a finite square matrix.
pub fn heat_map(measured: &SimilarityFile) -> Result<Picture> {
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
    map.draw()
}

/// What is written around the test images.
struct Texts {
    rows: Vec<String>,
    columns: Vec<String>,
    footer: String,
}

impl Texts {
    fn new(job: &Job, items: &[Item], rows: Vec<String>, footer: String) -> Self {
        let name = |item: &Item| job.weights.classes.name(item.label).unwrap_or_default();
        // Synonyms are for finding a class, not for its label.
        let short = |name: &str| name.split(',').next().unwrap_or_default().to_owned();
        Self { rows, columns: items.iter().map(|item| short(name(item))).collect(), footer }
    }

    fn grid<'a>(&'a self, images: &'a [Picture]) -> Grid<'a> {
        let title = "optimal plans: sharing ratio, runs of the encoder";
        Grid { row_labels: &self.rows, column_labels: &self.columns, images, title, footer: &self.footer }
    }
}

/// Checks that the pictures of so many images, with each plan and without, fit on one page.
///
/// # Errors
///
/// A page that is too large for a PNG viewer or for memory.
pub fn check_size(job: &Job, items: &[Item], num_plans: usize) -> Result<()> {
    let (height, width) = job.weights.image_size();
    let rows = vec!["no sharing".to_owned(); num_plans + 1];
    Texts::new(job, items, rows, String::new()).grid(&[]).check_size(items.len(), (width, height))
}

/// The same images without sharing and with each optimal plan, as Fig. 6 of arXiv:2504.05741: a row for each
/// plan, a column for each image.
///
/// # Errors
///
/// Images that were not drawn.
pub fn image_page(
    job: &Job,
    made_for: &MadeFor,
    items: &[Item],
    planned: &[Planned],
    compared: &Compared,
) -> Result<Picture> {
    let mut rows = vec!["no sharing".to_owned()];
    let mut images = compared.unshared.pictures.clone();
    for (plan, [_, optimal]) in planned.iter().zip(&compared.shared) {
        let runs = plan.optimal.plan.num_recompute();
        rows.push(match plan.target {
            Target::Ratio(ratio) => format!("{ratio}: {runs} runs"),
            Target::WorstQuality(at_least) => format!("all similar {at_least}: {runs} runs"),
            Target::Quality(at_least) => format!("similar {at_least}: {runs} runs"),
        });
        images.extend_from_slice(&optimal.pictures);
    }
    let footer = format!("{}, seed {}, {}", settings_line(made_for), job.seed, made_for.model());
    Texts::new(job, items, rows, footer).grid(&images).draw()
}
