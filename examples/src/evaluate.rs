//! The program `evaluate`: generated images against reference images, in numbers that say how they came about.
//!
//! [`cli`] reads the command line, [`mod@reference`] and [`images`] find what is compared, [`extractor`] makes
//! features of images and [`cache`] keeps them, [`mod@measure`] sums them up, and [`table`] shows what came of it;
//! [`bar`] shows how far it is.

pub mod bar;
pub mod cache;
pub mod cli;
pub mod extractor;
pub mod images;
pub mod measure;
pub mod reference;
pub mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context, Result};
use clap::Parser;
use ddt_metrics::{
    ClassCounts, EvaluationProtocol, Evaluator, Features, INCEPTION_2015, ImageSet, Metric, NamedProtocol,
    Protocol, Quantity, REPORT_VERSION, Report, Statistics, Verdict, Warning, explain, frechet_distance,
    precision_recall_with_progress, sorted_by_class,
};
use serde_json::Value;

use crate::identity::sha256_of;
use crate::{atomic_file, program};
use bar::Bar;
use cache::Cache;
use cli::{Args, ExtractorChoice};
use extractor::{CIFAR10_CLASSIFIER, Extractor, Rows};
use images::Images;
use measure::{Measured, measure};
use reference::ImageInput;

/// The largest description of a sample that is read, in bytes.
const MAX_DESCRIPTION_BYTES: u64 = 16 << 20;
/// Parts that the progress of precision and recall is shown in.
const PARTS: usize = 1000;

/// Runs the program; the status is 0, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    program::main(args.threads, |_, _| run(&args))
}

/// Compares, writes the report, and returns the table; or explains two reports.
///
/// # Errors
///
/// Anything that can be known to be wrong before the weights are read; weights that cannot be read; images
/// that cannot be read or measured; a full disk. Features made so far are kept.
pub fn run(args: &Args) -> Result<String> {
    if let [first, second] = args.explain.as_slice() {
        let (first, second) = (Report::read(first)?, Report::read(second)?);
        return Ok(table::explanation(&explain(&first, &second)));
    }
    let both = args.samples.as_deref().zip(args.references.as_deref());
    let (samples, references) = both.context("expected SAMPLES and REFERENCES")?;
    let job = Job::prepare(args, samples, references)?;
    let extractor = extractor::load(args.extractor, args.weights.as_deref(), &args.device)?;
    let report = job.evaluate(args, &*extractor)?;
    atomic_file::write(&job.out, report.to_json()?.as_bytes())?;
    Ok(format!("{}\nwrote {}", table::table(&report), job.out.display()))
}

/// Inputs that were looked at, and where results go.
#[derive(Debug)]
pub struct Job {
    samples: Images,
    references: ImageInput,
    reference_path: PathBuf,
    protocol: Option<&'static NamedProtocol>,
    cache: Cache,
    /// The report to write.
    pub out: PathBuf,
}

impl Job {
    /// Checks all that can be checked before a network is read.
    ///
    /// # Errors
    ///
    /// Inputs that are absent, damaged or neither images nor statistics; an unknown protocol; a report or cache
    /// that cannot be written.
    pub fn prepare(args: &Args, samples: &Path, references: &Path) -> Result<Self> {
        let found = ImageInput::open(samples).context("SAMPLES")?;
        let images = found.images.with_context(|| {
            format!(
                "SAMPLES: expected images in {}, got statistics alone; name them as REFERENCES",
                samples.display()
            )
        })?;
        let out = args.out.clone().unwrap_or_else(|| beside(samples, ".evaluation.json"));
        atomic_file::check_writable(&out).context("--out")?;
        Ok(Self {
            references: ImageInput::open(references).context("REFERENCES")?,
            reference_path: references.to_owned(),
            protocol: named_protocol(args, &images)?,
            samples: images,
            cache: Cache::open(&args.cache)?,
            out,
        })
    }

    /// Measures both sides with an extractor.
    ///
    /// # Errors
    ///
    /// Images that cannot be read or measured, statistics of another extractor, a damaged cache.
    pub fn evaluate(&self, args: &Args, extractor: &dyn Extractor) -> Result<Report> {
        let split_size = args.split_size as usize;
        let ours = measure("samples", &self.samples, extractor, &self.cache, split_size)?;
        let theirs = match &self.references.images {
            Some(images) => Some(measure("references", images, extractor, &self.cache, split_size)?),
            None => None,
        };
        let mut warnings = warnings_of("samples", &ours, self.samples.labels());
        if let Some(theirs) = &theirs {
            warnings.extend(theirs.duplicates.warning("references"));
            warnings.extend(theirs.size.is_none().then(|| different_sizes("references")));
        }
        // Statistics in a file are those of Inception, by custom.
        let stored = (extractor.name() == INCEPTION_2015).then_some(&self.references);
        let statistics = stored.and_then(|it| it.statistics.as_ref());
        let precomputed_statistics = statistics.is_some();
        let statistics = statistics.or(theirs.as_ref().map(|it| &it.statistics)).context(
            "REFERENCES: the statistics of the file are Inception's, and it has no images to take others of; \
             name images, or use --extractor inception",
        )?;
        let stored_spatial = stored.and_then(|it| it.spatial.as_ref());
        // Never one from the file beside the other from its images.
        let spatial = match precomputed_statistics {
            true => stored_spatial,
            false => theirs.as_ref().and_then(|it| it.spatial.as_ref()),
        };

        let evaluation = EvaluationProtocol {
            samples: image_set(&self.samples, &ours, false)?,
            references: self.reference_set(theirs.as_ref(), precomputed_statistics)?,
            evaluator: Evaluator {
                name: extractor.name().to_owned(),
                weights_sha256: extractor.weights_sha256().to_owned(),
                feature_size: ours.feature_size as u64,
            },
            neighbourhood: args.neighbourhood.into(),
            split_size: args.split_size.into(),
        };
        let protocol = Protocol { sample: description(self.samples.path(), &mut warnings)?, evaluation };
        let verdict = self.protocol.map(|it| it.check(&protocol));
        let mut metrics = Metrics { verdict: verdict.as_ref(), metrics: Vec::new(), warnings };
        metrics.frechet(Quantity::Frechet, &ours.statistics, statistics)?;
        if let (Some(ours), Some(theirs)) = (&ours.spatial, spatial) {
            metrics.frechet(Quantity::SpatialFrechet, ours, theirs)?;
        }
        if let Some(score) = &ours.score {
            metrics.add(Quantity::Score.name(verdict.as_ref()), score.mean);
            metrics.add("score_deviation", score.deviation);
        }
        if let Some(share) = class_accuracy(extractor, &ours, self.samples.labels()) {
            metrics.add("class_accuracy", share);
        }
        metrics.overlap(&ours, theirs.as_ref(), args.neighbourhood as usize)?;
        let Metrics { metrics, warnings, .. } = metrics;
        Ok(Report { version: REPORT_VERSION, metrics, verdict, warnings, protocol })
    }

    fn reference_set(&self, measured: Option<&Measured>, precomputed_statistics: bool) -> Result<ImageSet> {
        if let (Some(images), Some(measured)) = (&self.references.images, measured) {
            return image_set(images, measured, precomputed_statistics);
        }
        Ok(ImageSet {
            name: name_of(&self.reference_path),
            sha256: sha256_of(&self.reference_path)?,
            num_images: 0,
            image_size: None,
            classes: None,
            precomputed_statistics,
        })
    }
}

/// The protocol that was asked for, or the one of the samples' size.
fn named_protocol(args: &Args, samples: &Images) -> Result<Option<&'static NamedProtocol>> {
    match (args.protocol.as_deref(), samples.size()) {
        (Some("none"), _) => Ok(None),
        (Some(name), _) => Ok(Some(NamedProtocol::find(name).context("--protocol")?)),
        (None, Some((height, width))) if height == width && args.extractor == ExtractorChoice::Inception => {
            Ok(NamedProtocol::find(&format!("adm-imagenet-{height}")).ok())
        }
        (None, _) => Ok(None),
    }
}

/// Numbers as they come, with what is to be said of them.
struct Metrics<'a> {
    verdict: Option<&'a Verdict>,
    metrics: Vec<Metric>,
    warnings: Vec<Warning>,
}

impl Metrics<'_> {
    fn add(&mut self, name: &str, value: f64) {
        self.metrics.push(Metric { name: name.to_owned(), value });
    }

    fn frechet(&mut self, quantity: Quantity, ours: &Statistics, theirs: &Statistics) -> Result<()> {
        let name = quantity.name(self.verdict);
        let _bar = Bar::start(name, 1, "distances");
        let got = frechet_distance(ours, theirs).with_context(|| name.to_owned())?;
        self.add(name, got.distance);
        self.warnings.extend(got.warnings);
        Ok(())
    }

    /// Precision and recall, or why there are none.
    fn overlap(&mut self, ours: &Measured, theirs: Option<&Measured>, neighbourhood: usize) -> Result<()> {
        let rows = ours.features.as_ref().zip(theirs.and_then(|it| it.features.as_ref()));
        let enough = |it: &Rows| it.values.len() / it.size.max(1) > neighbourhood;
        let Some((ours, theirs)) = rows.filter(|(a, b)| enough(a) && enough(b)) else {
            let text = format!(
                "precision and recall need images on both sides, more than {neighbourhood} and at most 100000"
            );
            self.warnings.push(Warning::Note { text });
            return Ok(());
        };
        let bar = Mutex::new(Bar::start("precision and recall", PARTS, "parts"));
        let show = |share: f64| {
            if let Ok(mut bar) = bar.try_lock() {
                bar.set((share * PARTS as f64) as usize);
            }
        };
        let (ours, theirs) =
            (Features::new(&ours.values, ours.size)?, Features::new(&theirs.values, theirs.size)?);
        let got = precision_recall_with_progress(ours, theirs, neighbourhood, &show)?;
        self.add("precision", got.precision);
        self.add("recall", got.recall);
        Ok(())
    }
}

fn warnings_of(what: &str, measured: &Measured, labels: Option<&[i64]>) -> Vec<Warning> {
    let known = labels.map(|it| it.iter().map(|label| *label as u32).collect::<Vec<u32>>());
    let classes = known.as_ref().or(measured.predicted.as_ref());
    let sorted = classes.and_then(|it| sorted_by_class(it)).filter(|_| measured.score.is_some());
    let sizes = measured.size.is_none().then(|| different_sizes(what));
    [sorted, measured.duplicates.warning(what), sizes].into_iter().flatten().collect()
}

/// Share of images whose label is the class that the network sees, where both count the same classes.
fn class_accuracy(extractor: &dyn Extractor, measured: &Measured, labels: Option<&[i64]>) -> Option<f64> {
    let same_classes = extractor.name() == CIFAR10_CLASSIFIER;
    let (predicted, labels) = measured.predicted.as_ref().zip(labels).filter(|_| same_classes)?;
    let right = predicted.iter().zip(labels).filter(|it| i64::from(*it.0) == *it.1).count();
    Some(right as f64 / predicted.len().max(1) as f64)
}

fn different_sizes(what: &str) -> Warning {
    Warning::Note { text: format!("the {what} have different sizes; each was resized for itself") }
}

fn image_set(images: &Images, measured: &Measured, precomputed_statistics: bool) -> Result<ImageSet> {
    let path = images.path();
    Ok(ImageSet {
        name: name_of(path),
        sha256: if path.is_dir() { measured.sha256.clone() } else { sha256_of(path)? },
        num_images: images.num_images() as u64,
        image_size: measured.size.map(|(height, width)| (height as u64, width as u64)),
        classes: images.labels().and_then(ClassCounts::of),
        precomputed_statistics,
    })
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).display().to_string()
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    // A folder's name may end in a slash.
    let mut name = path.components().as_path().as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// What the program that drew a sample wrote beside it, if it did.
fn description(samples: &Path, warnings: &mut Vec<Warning>) -> Result<Option<Value>> {
    let path = beside(samples, ".json");
    if samples.is_dir() || !path.try_exists()? {
        return Ok(None);
    }
    let too_large = std::fs::metadata(&path)?.len() > MAX_DESCRIPTION_BYTES;
    let text = if too_large { None } else { std::fs::read(&path).ok() };
    let mut value: Option<Value> = text.and_then(|it| serde_json::from_slice(&it).ok());
    match value.as_mut().and_then(|it| it.get_mut("job")) {
        Some(job) => Ok(Some(job.take())),
        None => {
            let text = format!("{} does not describe the samples, and was passed over", path.display());
            warnings.push(Warning::Note { text });
            Ok(None)
        }
    }
}

/// Bytes in lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
