//! The page that a job ends in: a labelled grid, and the settings it was made with.

use anyhow::{Context, Result};
use ddt_flow::{Guidance, NoiseSource, TimeGrid};
use ddt_model::DdtConfig;
use serde::Serialize;

use crate::gpu;
use crate::grid::Grid;
use crate::job::{Job, Model};
use crate::picture::Picture;
use crate::png_file;
use crate::sampler_args::Dtype;
use crate::weights::Origin;

/// Key of the settings in the PNG file.
pub const SETTINGS_KEY: &str = "ddt:settings";

/// Everything that a picture depends on, and nothing that names a machine or a time.
#[derive(Debug, Serialize)]
struct Settings<'a> {
    program: &'a str,
    version: &'a str,
    weights: &'a str,
    weights_from: Origin,
    network: &'a DdtConfig,
    autoencoder: &'a str,
    image_size: [usize; 2],
    classes: Vec<Class<'a>>,
    images_per_class: u32,
    batch: usize,
    seed: u64,
    rng: NoiseSource,
    sample_number: &'a str,
    solver: &'a str,
    grid: &'a TimeGrid,
    guidance: &'a Guidance,
    #[serde(skip_serializing_if = "Option::is_none")]
    weaker: Option<&'a str>,
    sharing: Sharing<'a>,
    dtype: Dtype,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Class<'a> {
    label: u32,
    name: &'a str,
}

#[derive(Debug, Serialize)]
struct Sharing<'a> {
    asked: String,
    /// Steps at which the encoder runs; absent where it runs at every step.
    #[serde(skip_serializing_if = "Option::is_none")]
    recompute_steps: Option<&'a [usize]>,
}

/// Checks that a job's images fit on one page.
///
/// # Errors
///
/// A page that is too large for a PNG viewer or for memory.
pub fn check_size(job: &Job) -> Result<()> {
    let (height, width) = job.weights.image_size();
    let checked = Texts::of(job, String::new()).grid(&[]).check_size(job.columns as usize, (width, height));
    checked.with_context(|| {
        format!("{} classes of {} images do not fit on one page", job.classes.len(), job.columns)
    })
}

/// The bytes of the PNG file; equal jobs and images give equal bytes.
///
/// # Errors
///
/// Images that are not the job's.
pub fn encode(job: &Job, model: &Model, images: &[Picture]) -> Result<Vec<u8>> {
    let page = Texts::of(job, footer(job, model)).grid(images).draw()?;
    png_file::encode(&page, &[(SETTINGS_KEY, &settings(job, model)?)])
}

/// What is written around the images.
struct Texts {
    rows: Vec<String>,
    columns: Vec<String>,
    title: String,
    footer: String,
}

impl Texts {
    fn of(job: &Job, footer: String) -> Self {
        let columns = (0..job.columns).map(|column| format!("#{column}")).collect();
        Self { rows: row_labels(job), columns, title: title(job), footer }
    }

    fn grid<'a>(&'a self, images: &'a [Picture]) -> Grid<'a> {
        let Self { rows, columns, title, footer } = self;
        Grid { row_labels: rows, column_labels: columns, images, title, footer }
    }
}

fn row_labels(job: &Job) -> Vec<String> {
    let label = |&class: &u32| {
        let name = job.weights.classes.name(class).unwrap_or_default();
        // Synonyms are for finding a class, not for its label.
        format!("{class} {}", name.split(',').next().unwrap_or(name))
    };
    job.classes.iter().map(label).collect()
}

fn title(job: &Job) -> String {
    let (height, width) = job.weights.image_size();
    let name = match job.weights.origin {
        Origin::Demo => "DDT demo",
        Origin::Hub => "DDT-XL/2",
        Origin::File => "DDT",
    };
    format!("{name}, {width} x {height} px, seed {}", job.seed)
}

fn footer(job: &Job, model: &Model) -> String {
    let (low, high) = job.guidance.interval();
    let encoder = match &model.plan {
        None => "encoder at every step".to_owned(),
        Some(plan) => format!("encoder at {} of {} steps", plan.num_recompute(), plan.num_steps()),
    };
    let from = if model.weaker.is_some() { " from a weaker network" } else { "" };
    let identity: String = model.identity.network.chars().take(40).collect();
    format!(
        "{} x {}, guidance {}{from} in ({low}, {high}), {encoder}, {identity}…",
        job.grid.num_steps(),
        job.solver.name(),
        job.guidance.scale()
    )
}

fn settings(job: &Job, model: &Model) -> Result<String> {
    let class = |&label: &u32| Class { label, name: job.weights.classes.name(label).unwrap_or_default() };
    let (height, width) = job.weights.image_size();
    Ok(serde_json::to_string(&Settings {
        program: job.program,
        version: env!("CARGO_PKG_VERSION"),
        weights: &model.identity.network,
        weights_from: job.weights.origin,
        network: &job.weights.config,
        autoencoder: &model.identity.autoencoder,
        image_size: [height, width],
        classes: job.classes.iter().map(class).collect(),
        images_per_class: job.columns,
        batch: job.batch,
        seed: job.seed,
        rng: job.rng,
        sample_number: "1000000 label + column",
        solver: job.solver.name(),
        grid: &job.grid,
        guidance: &job.guidance,
        weaker: model.identity.weaker.as_deref(),
        sharing: Sharing {
            asked: job.share.to_string(),
            recompute_steps: model.plan.as_ref().map(|plan| plan.recompute_steps()),
        },
        dtype: job.dtype,
        device: gpu::kind(&job.device),
    })?)
}
