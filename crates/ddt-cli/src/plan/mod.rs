//! `ddt plan`: measures a network and plans at which steps its condition encoder runs.

mod report;
mod targets;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::value_parser;
use ddt::{
    Image, Opened, OutputFile, Pipeline, RECORD_KEY, Sharing,
    args::PipelineArgs,
    hub::{Hub, Release},
    picture::{Rgb8, encode_png},
    sharing::{ForecastOrder, OrderPlanner, SimilarityAccumulator, SimilarityFile},
};

use self::{
    report::{Compared, Report, Texts, Trial, compare, heat_map, image_page},
    targets::{Planned, Speed, Target, cost_plot},
};
use crate::{fetch, sample::parse_size, terminal::Terminal};

const EXAMPLES: &str = "\
Examples:
  ddt plan                                           plans for the defaults of ddt sample
  ddt plan --steps 250 --error 0.01,0.001            and the cheapest plans with forecasts this good
  ddt plan --steps 250 --order 0 --quality 0.98      the paper's reuse, and the cheapest plan this similar
  ddt plan --weights hub --steps 250 --test-images 0
  ddt sample --share out/sharing/plan-0.8.json       generates with a plan; its settings must be the same";

/// Measures how alike the self-conditions of a network are from step to step, and plans at which steps the condition
/// encoder runs; the other steps forecast its output from its last runs, or reuse it.
///
/// A plan serves the network, steps, guidance and solver it was made with, and no others.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(crate) struct Args {
    /// Sharing ratios to plan for: the share of steps that skip the condition encoder, each in [0, 1)
    #[arg(long, value_name = "RATIO,...", value_delimiter = ',', value_parser = ddt_study::parse_ratio,
          default_value = "0.5,0.66,0.75,0.8,0.83,0.87")]
    ratios: Vec<f64>,
    /// Order of the forecasts between runs of the encoder: 0 (reuse, as in the paper), 1 or 2
    #[arg(long, value_name = "0|1|2", default_value_t = Sharing::DEFAULT_ORDER)]
    order: ForecastOrder,
    /// Mean errors of forecasts to plan for, relative to the self-condition: the fewest runs of the encoder that keep
    /// to it; for orders 1 and 2 [default: none]
    #[arg(long, value_name = "ERROR,...", value_delimiter = ',', value_parser = parse_error)]
    error: Vec<f64>,
    /// Errors of forecasts to plan for that no single step may exceed; for orders 1 and 2 [default: none]
    #[arg(long, value_name = "ERROR,...", value_delimiter = ',', value_parser = parse_error)]
    worst_error: Vec<f64>,
    /// Mean similarities to plan for, each in (0, 1]: the fewest runs of the encoder that reach it; for order 0
    /// [default: none]
    #[arg(long, value_name = "SIMILARITY,...", value_delimiter = ',', value_parser = parse_quality)]
    quality: Vec<f64>,
    /// Similarities to plan for that every single step must reach, each in (0, 1]: the fewest runs that do; for order 0
    /// [default: none]
    #[arg(long, value_name = "SIMILARITY,...", value_delimiter = ',', value_parser = parse_quality)]
    worst_quality: Vec<f64>,
    /// Images to measure the similarity on, of classes spread over the table
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(1..=100_000))]
    images: u32,
    /// Other images to compare the plans on, generated without sharing and with every plan; 0 for plans alone
    /// [default: the number of --images]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(0..=100_000))]
    test_images: Option<u32>,
    /// Folder to write into; it is made if it is missing
    #[arg(long, value_name = "DIR", default_value = "out/sharing")]
    out: PathBuf,
    /// Side of the images in pixels, which chooses the published weights and guidance
    #[arg(long, value_name = "256|512", default_value = "256", value_parser = parse_size)]
    size: Release,
    #[command(flatten)]
    pipeline: PipelineArgs,
}

/// Images that are compared at once unless `--batch` says otherwise: small batches take turns more often, for steadier
/// times.
const BATCH: usize = 2;

impl Args {
    /// Goals: ratios, then similarities, then errors, each value once.
    ///
    /// # Errors
    /// A goal that plans of this order cannot have.
    fn targets(&self) -> Result<Vec<Target>> {
        let goals = [
            (&self.ratios, Target::Ratio as fn(f64) -> Target),
            (&self.quality, Target::Quality),
            (&self.worst_quality, Target::WorstQuality),
            (&self.error, Target::Error),
            (&self.worst_error, Target::WorstError),
        ];
        let mut targets = Vec::new();
        for target in goals.into_iter().flat_map(|(values, target)| values.iter().copied().map(target)) {
            ensure!(
                target.is_for(self.order),
                "--quality and --worst-quality are goals of --order 0, --error and --worst-error of orders 1 and 2; \
                 got {target} with --order {}",
                self.order
            );
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        Ok(targets)
    }
}

fn parse_error(text: &str) -> Result<f64, String> {
    let error = text.trim().parse().ok().filter(|it: &f64| *it > 0.0 && it.is_finite());
    error.ok_or_else(|| "expected a relative error above 0, such as 0.01".to_owned())
}

fn parse_quality(text: &str) -> Result<f64, String> {
    let similarity = text.trim().parse().ok().filter(|it| *it > 0.0 && *it <= 1.0);
    similarity.ok_or_else(|| "expected a similarity above 0 and at most 1, such as 0.98".to_owned())
}

/// Measures, plans, compares, and writes each file when its contents are known; returns the table.
pub(crate) fn run(args: &Args, terminal: &Terminal) -> Result<String> {
    let given = &args.pipeline;
    given.threads.start()?;
    SimilarityAccumulator::new(given.steps.unwrap_or(1)).context("--steps")?;
    given.expect_unshared("plans are made")?;
    let targets = args.targets()?;
    let folder = Folder::prepare(&args.out, &targets).context("--out")?;
    let hub = Hub::from_env();
    fetch::weights(&hub, given, args.size, &[], terminal)?;
    let opened = given.open(args.size, &hub)?;
    let num_classes = opened.classes().len();
    let calibration = Image::spread(args.images, num_classes, 0);
    let rounds = (args.images as usize).div_ceil(num_classes) as u32;
    let trial = Trial {
        images: Image::spread(args.test_images.unwrap_or(args.images), num_classes, rounds),
        seed: given.seed,
        rng: given.rng,
        batch: given.batch.map_or(BATCH, |it| it as usize),
    };
    check_page(&opened, &trial, targets.len()).context("--test-images")?;
    if let Some(notice) = given.notice(&opened, args.size, &hub) {
        terminal.say(notice);
    }
    let pipeline = opened.load()?;

    terminal.say(format!("measuring the similarity on {} images", calibration.len()));
    let _stepping = terminal.cancel().stepping();
    let mut meter = terminal.meter();
    let mut watch = |progress: &ddt::Progress<'_>| meter.images(progress);
    let measured = pipeline.measure_similarity(&calibration, trial.seed, trial.rng, &mut watch)?;
    drop(meter);
    let planner = pipeline.planner(&measured, args.order)?;
    let planned: Vec<Planned> =
        targets.iter().map(|&it| Planned::new(it, &planner)).collect::<Result<_>>()?;
    let speed = speed(&pipeline)?;
    folder.write_plans(&measured, &planner, &planned, &speed)?;

    let compared = match trial.images.len() {
        0 => None,
        number => {
            terminal.say(format!(
                "generating {number} other images without sharing and with {} plans",
                2 * planned.len()
            ));
            Some(compare_plans(&pipeline, &trial, &planned, terminal)?)
        }
    };
    let report = Report::new(&pipeline, &calibration, &trial, speed, &planned, compared.as_ref())?;
    let json = report.to_json()?;
    if let Some(compared) = &compared {
        folder.write_picture("images.png", &image_page(&pipeline, &trial, &planned, compared)?, &json)?;
    }
    folder.write("report.json", json.as_bytes())?;
    Ok(format!("{}wrote plans, report and pictures to {}", report.table(), folder.path.display()))
}

/// Inputs of the predicted speed-up of a pipeline's plans.
pub(crate) fn speed(pipeline: &Pipeline) -> Result<Speed> {
    let config = pipeline.config();
    let network = config.network.as_ref().context("the network has no description")?;
    let (_, height, width) = pipeline.latent_shape();
    let guided = config.guidance.map(|it| it.guided_steps(config.grid())).unwrap_or_default();
    Ok(Speed { operations: network.operation_counts(height, width), guided })
}

/// Checks that the pictures of the trial, with each plan and without, fit on one page.
fn check_page(opened: &Opened, trial: &Trial, num_plans: usize) -> Result<()> {
    let (height, width) = opened.image_size();
    let rows = vec!["no sharing".to_owned(); num_plans + 1];
    let texts = Texts::new(opened.classes(), &trial.images, rows, String::new());
    Ok(texts.grid(&[]).check_size(trial.images.len().max(1), width, height)?)
}

/// Generates the test images without sharing, and with both plans of each target.
fn compare_plans(
    pipeline: &Pipeline,
    trial: &Trial,
    planned: &[Planned],
    terminal: &Terminal,
) -> Result<Compared> {
    let plans: Vec<_> = planned.iter().flat_map(|it| [&it.uniform.plan, &it.optimal.plan]).collect();
    // The run without sharing comes first; then uniform and optimal plans take turns.
    let shown = |way: usize| way.is_multiple_of(2);
    let mut outcomes = compare(pipeline, trial, &plans, shown, &mut terminal.meter())?.into_iter();
    let unshared = outcomes.next().context("nothing was generated")?;
    let shared = std::iter::from_fn(|| Some([outcomes.next()?, outcomes.next()?])).collect();
    Ok(Compared { unshared, shared })
}

/// Files that every run writes, the first of them as soon as it has measured.
const FILES: [&str; 5] = ["similarity.json", "similarity.png", "cost.svg", "images.png", "report.json"];

/// The folder that everything is written into.
struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder, and checks that each file can be written and that files of these names are an earlier run's.
    fn prepare(path: &Path, targets: &[Target]) -> Result<Self> {
        let folder = Self { path: path.to_owned() };
        for name in FILES {
            OutputFile::with_folder(&path.join(name), &[])?;
        }
        for target in targets {
            OutputFile::with_folder(&path.join(plan_name(*target)), &[])?;
        }
        if let Some(name) = folder.written()?.first() {
            let measured = std::fs::read(path.join(FILES[0])).ok();
            ensure!(
                measured.is_some_and(|it| SimilarityFile::from_json(&it).is_ok()),
                "{} has a file {name}, but no {} of an earlier run; name another folder",
                path.display(),
                FILES[0]
            );
        }
        Ok(folder)
    }

    /// Names in the folder that a run gives.
    fn written(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.path)?.collect::<Result<Vec<_>, _>>()?;
        let names = entries.iter().filter_map(|it| it.file_name().into_string().ok());
        Ok(names.filter(|it| FILES.contains(&it.as_str()) || is_plan_name(it)).collect())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(OutputFile::new(&self.path.join(name), &[])?.write(bytes)?)
    }

    fn write_picture(&self, name: &str, picture: &Rgb8, record: &str) -> Result<()> {
        self.write(name, &encode_png(picture, &[(RECORD_KEY, record)])?)
    }

    /// Writes what is known before any plan is tried; hours of sampling may be in it.
    fn write_plans(
        &self,
        measured: &SimilarityFile,
        planner: &OrderPlanner<'_>,
        planned: &[Planned],
        speed: &Speed,
    ) -> Result<()> {
        // Files of an earlier run would be taken for this one's.
        for name in self.written()?.iter().filter(|it| *it != FILES[0]) {
            std::fs::remove_file(self.path.join(name)).with_context(|| name.clone())?;
        }
        self.write(FILES[0], measured.to_json()?.as_bytes())?;
        for it in planned {
            self.write(&plan_name(it.target), it.file(measured, speed)?.to_json()?.as_bytes())?;
        }
        let record = serde_json::json!({
            "made_for": measured.made_for, "seed": measured.seed, "images": measured.images,
        });
        self.write_picture("similarity.png", &heat_map(measured)?, &record.to_string())?;
        self.write("cost.svg", cost_plot(measured, planner)?.as_bytes())
    }
}

fn plan_name(target: Target) -> String {
    format!("plan-{target}.json")
}

fn is_plan_name(name: &str) -> bool {
    let target = name.strip_prefix("plan-").and_then(|it| it.strip_suffix(".json"));
    target.is_some_and(|target| {
        let (kind, number) = target.rsplit_once('-').unwrap_or(("", target));
        let is_kind = ["", "quality", "worst", "error", "worst-error"].contains(&kind);
        is_kind && number.parse::<f64>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_of_an_earlier_run_are_known_by_name() {
        use Target::{Error, Quality, Ratio, WorstError, WorstQuality};
        for target in [Ratio(0.5), Quality(0.9), WorstQuality(0.8), Error(0.1), WorstError(0.001)] {
            assert!(is_plan_name(&plan_name(target)), "{target}");
        }
        assert!(!["plan-mine.json", "plan-mine-2.json", "plan-0.5.txt"].into_iter().any(is_plan_name));
    }
}
