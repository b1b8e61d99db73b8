//! Parses the JSON of a client into a job whose settings are checked.

use anyhow::{Context, Result, ensure};
use ddt::{
    Image, Pipeline, PipelineConfig, Request, Sharing,
    flow::{NoiseSource, SOLVER_NAMES},
    sharing::ForecastOrder,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Settings that a client may choose; all others are the server's.
pub(crate) const FIELDS: [&str; 4] = ["solver", "grid", "guidance", "sharing"];

/// Upper bounds on the settings of a job.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Limits {
    pub(crate) images: usize,
    /// Pixels of all images.
    pub(crate) pixels: usize,
    pub(crate) steps: usize,
    /// Settings that are compared.
    pub(crate) settings: usize,
    /// Images and steps of a measurement of the similarity.
    pub(crate) measured_images: u32,
    pub(crate) measured_steps: usize,
    /// Memory that a measurement takes.
    pub(crate) measured_bytes: usize,
}

pub(crate) const LIMITS: Limits = Limits {
    images: 64,
    pixels: 1 << 22,
    steps: 1000,
    settings: 2,
    measured_images: 16,
    measured_steps: 250,
    measured_bytes: 1 << 30,
};

/// A submitted job, as JSON.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Submission {
    Generate {
        request: Request,
        #[serde(default = "one")]
        settings: Vec<Map<String, Value>>,
    },
    Measure {
        #[serde(default)]
        settings: Map<String, Value>,
        images: u32,
        #[serde(default)]
        seed: u64,
        #[serde(default = "usual_order")]
        order: ForecastOrder,
    },
}

fn one() -> Vec<Map<String, Value>> {
    vec![Map::new()]
}

fn usual_order() -> ForecastOrder {
    Sharing::DEFAULT_ORDER
}

/// A job whose settings were checked.
pub(crate) enum Order {
    /// The images of a request with each of some settings.
    Generate { request: Request, pipelines: Vec<Pipeline> },
    /// The similarity of the steps, and the plans of every budget.
    Measure { pipeline: Box<Pipeline>, images: Vec<Image>, seed: u64, order: ForecastOrder },
}

impl Order {
    /// Reads and checks a submission.
    ///
    /// # Errors
    /// JSON of another form; settings that do not fit the weights; more than [`LIMITS`].
    pub(crate) fn parse(json: &[u8], pipeline: &Pipeline) -> Result<Self> {
        let submission = serde_json::from_slice(json);
        match submission
            .context("expected {\"generate\": {...}} or {\"measure\": {...}}, see docs/serve.md")?
        {
            Submission::Generate { request, settings } => {
                check_request(&request, pipeline)?;
                ensure!(
                    (1..=LIMITS.settings).contains(&settings.len()),
                    "expected 1 to {} settings, got {}",
                    LIMITS.settings,
                    settings.len()
                );
                let pipelines =
                    settings.into_iter().map(|it| sampler(pipeline, it)).collect::<Result<_>>()?;
                Ok(Self::Generate { request, pipelines })
            }
            Submission::Measure { settings, images, seed, order } => {
                let pipeline = Box::new(sampler(pipeline, settings)?);
                check_measurement(&pipeline, images)?;
                let images = Image::spread(images, pipeline.classes().len(), 0);
                Ok(Self::Measure { pipeline, images, seed, order })
            }
        }
    }
}

fn check_request(request: &Request, pipeline: &Pipeline) -> Result<()> {
    let (height, width) = pipeline.image_size();
    let most = LIMITS.images.min(LIMITS.pixels / (height * width).max(1)).max(1);
    let images = request.classes.len().saturating_mul(request.images_per_class as usize);
    ensure!(images <= most, "expected at most {most} images, got {images}");
    pipeline.check(request)?;
    let mut labels = request.classes.clone();
    labels.sort_unstable();
    labels.dedup();
    ensure!(labels.len() == request.classes.len(), "expected each class once, got {:?}", request.classes);
    Ok(())
}

/// Refuses a pipeline whose similarity cannot be measured, whatever its sampler.
pub(crate) fn check_measurable(pipeline: &Pipeline) -> Result<()> {
    ensure!(
        pipeline.network().is_some_and(|it| it.decoupled().is_some()),
        "expected a network of two halves, on the CPU, to measure similarity"
    );
    ensure!(
        pipeline.config().guiding_network.is_none(),
        "plans are made for guidance away from \"no class\"; the server has a guiding network"
    );
    Ok(())
}

fn check_measurement(pipeline: &Pipeline, images: u32) -> Result<()> {
    check_measurable(pipeline)?;
    ensure!(
        (1..=LIMITS.measured_images).contains(&images),
        "expected 1 to {} images to measure on, got {images}",
        LIMITS.measured_images
    );
    let steps = pipeline.config().grid().num_steps();
    let (_, height, width) = pipeline.latent_shape();
    let sizes = pipeline.config().network.as_ref().map(|it| &it.sizes);
    let state = sizes.map_or(0, |it| height * width / it.patch_size.pow(2) * it.hidden_size);
    ensure!(
        steps <= LIMITS.measured_steps && 8 * steps * state <= LIMITS.measured_bytes,
        "expected at most {} steps and {} bytes of self-conditions to measure, got {steps} steps and {} bytes; \
         ddt plan measures more",
        LIMITS.measured_steps,
        LIMITS.measured_bytes,
        8 * steps * state
    );
    Ok(())
}

/// The server's pipeline with some settings of a client.
fn sampler(pipeline: &Pipeline, settings: Map<String, Value>) -> Result<Pipeline> {
    let Value::Object(mut config) = serde_json::to_value(pipeline.config())? else {
        anyhow::bail!("the server's settings are no JSON object");
    };
    for (name, value) in settings {
        ensure!(FIELDS.contains(&name.as_str()), "expected settings {}, got {name:?}", FIELDS.join(", "));
        config.insert(name, value);
    }
    let config: PipelineConfig = serde_json::from_value(Value::Object(config)).context("the settings")?;
    // A path, which no client may name.
    ensure!(
        !matches!(config.sharing, Sharing::File(_)),
        "expected sharing none, uniform:R, ratio:X or a plan, got {:?}",
        config.sharing.to_string()
    );
    let (steps, solver) = (config.grid().num_steps(), config.solver.as_str());
    ensure!(steps <= LIMITS.steps, "expected at most {} steps, got {steps}", LIMITS.steps);
    // A tolerance may ask for any number of evaluations in one step.
    ensure!(
        SOLVER_NAMES.contains(&solver) || config.solver == pipeline.config().solver,
        "expected solver {}, got {solver}",
        SOLVER_NAMES.join(", ")
    );
    Ok(pipeline.with_sampler(&config)?)
}

/// The command that makes the same file again.
pub(crate) struct Command {
    /// Flags that the server was started with and that a job cannot change.
    pub(crate) fixed: Vec<String>,
}

impl Command {
    /// The command line of a run; a plan that was made here is only in the record of the file.
    pub(crate) fn line(&self, config: &PipelineConfig, request: &Request, name: &str) -> String {
        if let Sharing::Plan(_) = config.sharing {
            return format!("ddt sample --redo {name}.png");
        }
        let labels: Vec<String> = request.classes.iter().map(u32::to_string).collect();
        let mut words = vec!["ddt".to_owned(), "sample".to_owned()];
        words.extend(self.fixed.iter().cloned());
        let mut flag = |name: &str, value: String| words.extend([format!("--{name}"), value]);
        flag("class", labels.join(","));
        flag("images", request.images_per_class.to_string());
        flag("seed", request.seed.to_string());
        if request.rng == NoiseSource::Torch {
            flag("rng", "torch".to_owned());
        }
        flag("batch", request.batch.to_string());
        flag("solver", config.solver.as_str().to_owned());
        flag("steps", config.grid().num_steps().to_string());
        match config.grid().end() {
            end if end < 1.0 => flag("end", end.to_string()),
            _ => flag("last-step", config.grid().last_step().to_string()),
        }
        flag("timeshift", config.grid().timeshift().to_string());
        if let Some(guidance) = config.guidance {
            let (low, high) = guidance.interval();
            flag("guidance", guidance.scale().to_string());
            flag("interval", format!("{low},{high}"));
            if let Some(channels) = guidance.channels() {
                flag("guided-channels", channels.to_string());
            }
        }
        flag("share", config.sharing.to_string());
        flag("out", format!("{name}.png"));
        words.iter().map(|it| quoted(it)).collect::<Vec<_>>().join(" ")
    }
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || "-_./,:=".contains(it);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
