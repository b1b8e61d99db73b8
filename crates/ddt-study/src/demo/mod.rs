//! The demo, measured by a metric that needs no download.
//!
//! [`settings`] lists the measurements. Each measured setting is a line of a file, so a study that was stopped resumes
//! after it.

mod settings;

use std::{fmt::Write, time::Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use ddt::{
    Image, Pipeline, PipelineConfig,
    adapters::{Decode, Encode, TinyDecoder, TinyEncoder},
    files::Checkpoint,
    flow::{EULER, Guidance, NoiseSource, TimeGrid, solver_by_name},
    model::SampleOptions,
    sharing::{ForecastOrder, SharingPlan, SimilarityFile},
};
use ddt_plot::{LinePlot, Series};
use serde_json::json;

use self::settings::{
    DEMO_GUIDANCE, LOWER_ENDS, Measured, PLANS, SCALES, SOLVERS, STEPS, Sampling, Setting, Sharing, Stepping,
    TIMESHIFTS, budgets, settings, shared, swept,
};
pub use self::settings::{DemoStudy, Group};
use crate::{
    classifier::Classifier,
    metric::{LAST_STEP, OfflineMetric, Seen},
    study::{Folder, News, OnNews, ResultsFile, measure_similarity, tell},
};

/// Images that the plans are made from, as in the published code.
const CALIBRATION_IMAGES: u32 = 8;

/// First column of the measured images: others than those that plans are made from.
const FIRST_COLUMN: u32 = 1000;

impl DemoStudy {
    /// Measures the settings that are not measured yet, and writes tables and plots of all of them; returns the tables.
    ///
    /// # Errors
    /// Photos or weights that cannot be read, a folder that cannot be written, results of other settings;
    /// [`ddt::Error::Cancelled`].
    pub fn run(&self, on_news: &mut OnNews<'_>) -> Result<String> {
        let folder = Folder::open(&self.out, &["tables.md"])?;
        let mut config = PipelineConfig::new(&self.weights);
        config.grid = Some(TimeGrid::new(self.steps, Some(LAST_STEP), 1.0).context("--steps")?);
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
        let text = markdown(self, &results)?;
        folder.write("tables.md", &text)?;
        for group in self.groups() {
            if let Some((name, svg)) = plot(*group, self, &results) {
                folder.write(name, &svg)?;
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
    similarity: Option<SimilarityFile>,
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
        let Some(Sharing { order, planned, budget }) = sampling.sharing else { return Ok(None) };
        if !planned {
            return Ok(Some(SharingPlan::uniform_budget(sampling.steps, budget)?.with_order(order)));
        }
        // Plans are for the steps and guidance of the pipeline, which are those of the sharing table.
        if self.similarity.is_none() {
            let images = Image::spread(CALIBRATION_IMAGES, self.pipeline.classes().len(), 0);
            self.similarity =
                Some(measure_similarity(self.pipeline, &images, 0, NoiseSource::Counter, on_news)?);
        }
        let measured = self.similarity.as_ref().context("nothing was measured")?;
        let planner = self.pipeline.planner(measured, order)?;
        Ok(Some(planner.plan(budget)?.plan))
    }
}

type Results = ResultsFile<Measured>;

/// The tables of some groups, in Markdown.
fn markdown(study: &DemoStudy, results: &Results) -> Result<String> {
    let mut text = format!("{} images a line, compared with all training photos.\n", study.images);
    for group in study.groups() {
        text += "\n";
        text += &match group {
            Group::Floor => floor(study, results)?,
            Group::Sharing => sharing(study, results)?,
            Group::Guidance => guidance(study, results)?,
            Group::Steps => steps(results)?,
        };
    }
    Ok(text)
}

/// The plot of a group, if it has one, and the name of its file.
fn plot(group: Group, study: &DemoStudy, results: &Results) -> Option<(&'static str, String)> {
    let (name, title, x_label, series) = match group {
        Group::Floor => return None,
        Group::Sharing => {
            ("sharing.svg", "Sharing", "share of steps that skip the encoder", shares(study, results))
        }
        Group::Guidance => ("guidance.svg", "Guidance", "guidance", scales(study, results)),
        Group::Steps => ("steps.svg", "Steps", "steps", numbers(results)),
    };
    let title = &format!("{title}: distance to training photos");
    let y_label = "distance of classifier features";
    let plot = LinePlot { title, x_label, y_label, log_y: false, series: &series };
    Some((name, plot.svg()))
}

fn get(results: &Results, setting: &Setting) -> Result<Measured> {
    let key = setting.key();
    results.get(&key).copied().with_context(|| format!("{key} is missing"))
}

/// "distance (class right)".
fn short(Seen { distance, accuracy }: Seen) -> String {
    format!("{distance:.3} ({:.1} %)", 100.0 * accuracy)
}

fn floor(study: &DemoStudy, results: &Results) -> Result<String> {
    let mut text = "| images | distance | class right |\n|---|---|---|\n".to_owned();
    let lines = [
        ("test photos", Setting::Photos),
        ("test photos through the autoencoder", Setting::Reconstructions),
        ("demo, no guidance", swept(study.steps, 1.0, 0.0)),
        ("demo, guidance 4 in (0, 1)", shared(study.steps, None)),
    ];
    for (name, setting) in lines {
        let Seen { distance, accuracy } = get(results, &setting)?.seen;
        writeln!(text, "| {name} | {distance:.3} | {:.1} % |", 100.0 * accuracy)?;
    }
    Ok(text)
}

fn sharing(study: &DemoStudy, results: &Results) -> Result<String> {
    let steps = study.steps;
    let mut text =
        format!("Sharing, {steps} Euler steps, distance (class right):\n\n| ratio | encoder runs |");
    for plan in PLANS {
        write!(text, " {} |", name_of(plan))?;
    }
    writeln!(text, "\n|---|---|{}", "---|".repeat(PLANS.len()))?;
    let first = format!(" {} |", short(get(results, &shared(steps, None))?.seen));
    writeln!(text, "| 0 | {steps} |{}", first.repeat(PLANS.len()))?;
    for budget in budgets(steps) {
        write!(text, "| {:.2} | {budget} |", 1.0 - budget as f64 / steps as f64)?;
        for (order, planned) in PLANS {
            let sharing = Sharing { order, planned, budget };
            write!(text, " {} |", short(get(results, &shared(steps, Some(sharing)))?.seen))?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

fn name_of((order, planned): (ForecastOrder, bool)) -> String {
    format!("order {order}, {}", if planned { "planned" } else { "uniform" })
}

fn guidance(study: &DemoStudy, results: &Results) -> Result<String> {
    let mut text = format!("Guidance, {} Euler steps, distance (class right):\n\n", study.sweep_steps);
    let heads: Vec<String> = LOWER_ENDS.iter().map(|from| format!("({from}, 1)")).collect();
    writeln!(text, "| guidance | {} |\n|---{}|", heads.join(" | "), "|---".repeat(heads.len()))?;
    for guidance in SCALES {
        write!(text, "| {guidance:.1} |")?;
        for from in LOWER_ENDS {
            write!(text, " {} |", short(get(results, &swept(study.sweep_steps, guidance, from))?.seen))?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

fn steps(results: &Results) -> Result<String> {
    let mut text = "Steps, guidance 4 in (0, 1), distance (class right):\n\n| steps |".to_owned();
    for (solver, timeshift) in curves() {
        write!(text, " {solver}, shift {timeshift} |")?;
    }
    writeln!(text, "\n|---{}|", "|---".repeat(curves().count()))?;
    for steps in STEPS {
        write!(text, "| {steps} |")?;
        for (solver, timeshift) in curves() {
            let setting = Setting::Stepped(Stepping { steps, solver, timeshift });
            write!(text, " {} |", short(get(results, &setting)?.seen))?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

fn curves() -> impl Iterator<Item = (&'static str, f64)> {
    SOLVERS.into_iter().flat_map(|solver| TIMESHIFTS.map(|it| (solver, it)))
}

/// Distance against the ratio of shared steps.
fn shares(study: &DemoStudy, results: &Results) -> Vec<Series> {
    let steps = study.steps;
    let point = |budget: usize, sharing: Option<Sharing>| {
        let ratio = 1.0 - budget as f64 / steps as f64;
        distance(results, ratio, &shared(steps, sharing))
    };
    let line = |(order, planned)| {
        let first = point(steps, None);
        let rest =
            budgets(steps).into_iter().map(|budget| point(budget, Some(Sharing { order, planned, budget })));
        let points = std::iter::once(first).chain(rest).flatten().collect();
        Series { name: name_of((order, planned)), points }
    };
    PLANS.map(line).into()
}

/// Distance against guidance for each interval.
fn scales(study: &DemoStudy, results: &Results) -> Vec<Series> {
    let line = |from: f64| {
        let point = |it: f64| distance(results, it, &swept(study.sweep_steps, it, from));
        Series { name: format!("({from}, 1)"), points: SCALES.into_iter().filter_map(point).collect() }
    };
    LOWER_ENDS.map(line).into()
}

/// Distance against the number of steps for each solver and shift.
fn numbers(results: &Results) -> Vec<Series> {
    let line = |(solver, timeshift)| {
        let point = |steps: usize| {
            distance(results, steps as f64, &Setting::Stepped(Stepping { steps, solver, timeshift }))
        };
        let name = format!("{solver}, shift {timeshift}");
        Series { name, points: STEPS.into_iter().filter_map(point).collect() }
    };
    curves().map(line).collect()
}

fn distance(results: &Results, x: f64, setting: &Setting) -> Option<(f64, f64)> {
    results.get(&setting.key()).map(|it| (x, it.seen.distance))
}
