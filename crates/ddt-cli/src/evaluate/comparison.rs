//! A comparison: inputs that were looked at, then measured, and the numbers that may bear their names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Mutex,
};

use anyhow::{Context, Result, bail, ensure};
use clap::value_parser;
use ddt::{OutputFile, Place, sha256_of};
use ddt_dist::Group;
use ddt_metrics::{
    ClassCounts, EvaluationProtocol, Evaluator, Features, INCEPTION_2015, ImageSet, Metric, NamedProtocol,
    Protocol, Quantity, REPORT_VERSION, Report, Statistics, Verdict, Warning, frechet_distance,
    precision_recall_with_progress, sorted_by_class,
};
use serde_json::Value;

use super::{
    extractor::{self, Choice, Extractor, Rows},
    features::{Cache, Measured, measure},
    input::{Images, Input},
};
use crate::{
    convert::class_names,
    dataset::beside,
    terminal::{Cancel, Terminal},
};

/// How two sets of images are measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Measurement {
    /// Which network computes features
    #[arg(long, value_enum, default_value_t = Choice::Inception)]
    pub(crate) extractor: Choice,
    /// Weights of that network (safetensors or PyTorch); cifar10-classifier needs none
    #[arg(long, value_name = "PATH")]
    pub(crate) weights: Option<PathBuf>,
    /// Device that computes the features: cpu; in a build with GPUs (docs/CUDA.md) inception also runs on cuda, or on
    /// cuda:N, GPU N counted from 0
    #[arg(long, default_value = "cpu")]
    pub(crate) device: Place,
    /// Protocol that the numbers must follow to bear its names: adm-imagenet-256, adm-imagenet-512; with the generation
    /// of a paper's table ddt-imagenet-256, ddt-imagenet-512, rae-imagenet-256, rae-imagenet-512, the last two also with
    /// -autoguided after them; or none
    /// [default: that of the samples' size with inception, else none]
    #[arg(long, value_name = "NAME")]
    pub(crate) protocol: Option<String>,
    /// Names of the labels in SAMPLES, for class_accuracy: imagenet, or a text file with a name per line
    /// [default: those of the class folders, or of the description that ddt dataset writes]
    #[arg(long, value_name = "imagenet|PATH")]
    pub(crate) classes: Option<PathBuf>,
    /// The neighbour whose distance is the radius in precision and recall
    #[arg(long, value_name = "K", default_value_t = 3, value_parser = value_parser!(u32).range(1..=1024))]
    pub(crate) neighbourhood: u32,
    /// Consecutive rows of one split of the score
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = value_parser!(u32).range(1..))]
    pub(crate) split_size: u32,
    /// The report to write [default: the name of the samples with .evaluation.json after it]
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Option<PathBuf>,
    /// Folder of cached features; it is made if it is missing
    #[arg(long, value_name = "DIR", default_value = "out/features")]
    pub(crate) cache: PathBuf,
}

impl Measurement {
    /// Reads the network that computes features.
    pub(crate) fn load(&self, group: &dyn Group, terminal: &Terminal) -> Result<Extractor> {
        extractor::load(self.extractor, self.weights.as_deref(), self.device, group, terminal)
    }
}

/// The largest description of a sample that is read, in bytes.
const MAX_DESCRIPTION_BYTES: u64 = 16 << 20;

/// Why another extractor than Inception cannot be compared with a file of statistics.
const NO_IMAGES: &str = "REFERENCES: the statistics of the file are Inception's, and it has no images to take others of; \
                         name images, or use --extractor inception";

/// Checks references before there are samples to compare with them.
pub(crate) fn check_references(path: &Path, extractor: &Extractor) -> Result<()> {
    let quiet = Terminal::new(true, Cancel::default());
    let references = Input::open(path, &quiet).context("REFERENCES")?;
    ensure!(references.images.is_some() || extractor.name == INCEPTION_2015, NO_IMAGES);
    Ok(())
}

/// Inputs that were looked at, and the report to write.
pub(crate) struct Comparison<'a> {
    how: &'a Measurement,
    terminal: &'a Terminal,
    samples: Images,
    references: Input,
    reference_path: &'a Path,
    protocol: Option<&'static NamedProtocol>,
    /// How the samples were generated.
    description: Option<Value>,
    /// Notes on the inputs.
    notes: Vec<Warning>,
    cache: Cache,
    out: OutputFile,
}

impl<'a> Comparison<'a> {
    /// Checks all that can be checked before a network is read.
    pub(crate) fn prepare(
        path: &'a Path,
        reference_path: &'a Path,
        how: &'a Measurement,
        terminal: &'a Terminal,
    ) -> Result<Self> {
        let out = how.out.clone().unwrap_or_else(|| beside(path, ".evaluation.json"));
        let out = OutputFile::new(&out, &["json"]).context("--out")?;
        ensure!(
            !out.target().exists() || Report::read(out.target()).is_ok(),
            "--out: {} is there already and is not a report; name another file",
            out.path().display()
        );
        let samples = Input::open(path, terminal).context("SAMPLES")?.images;
        let mut samples = samples.with_context(|| {
            let path = path.display();
            format!("SAMPLES: expected images in {path}, got only statistics; name them as REFERENCES")
        })?;
        let references = Input::open(reference_path, terminal).context("REFERENCES")?;
        let mut notes = Vec::new();
        let sides = [("samples", Some(&samples)), ("references", references.images.as_ref())];
        for (what, left_out) in sides.map(|(what, it)| (what, it.and_then(|it| it.left_out.as_ref()))) {
            notes.extend(left_out.map(|it| note(format!("{what}: {it}"))));
        }
        let description = description(path, &mut notes)?;
        if let Some(names) = &how.classes {
            ensure!(
                !path.is_dir(),
                "--classes: the folders of SAMPLES name their classes; leave --classes out"
            );
            samples.class_names = (0..).zip(class_names(names).context("--classes")?).collect();
        } else if samples.class_names.is_empty() {
            samples.class_names = description.as_ref().map(described_classes).unwrap_or_default();
        }
        Ok(Self {
            protocol: named_protocol(how, &samples)?,
            cache: Cache::open(&how.cache)?,
            how,
            terminal,
            samples,
            references,
            reference_path,
            description,
            notes,
            out,
        })
    }

    /// Computes the features of both sides, shared by the ranks of a group.
    pub(super) fn fill(&self, group: &dyn Group, extractor: &Extractor) -> Result<()> {
        self.cache.fill(group, extractor, &self.samples)?;
        self.references.images.iter().try_for_each(|it| self.cache.fill(group, extractor, it))
    }

    /// Measures both sides with an extractor.
    pub(super) fn evaluate(&self, extractor: &Extractor) -> Result<Report> {
        let split_size = self.how.split_size as usize;
        let measure = |what, images| measure(what, images, extractor, &self.cache, split_size, self.terminal);
        let ours = measure("samples", &self.samples)?;
        let theirs = self.references.images.as_ref().map(|it| measure("references", it)).transpose()?;
        let mut warnings = self.notes.clone();
        warnings.extend(warnings_of("samples", &ours, self.samples.labels.as_deref()));
        if let Some(theirs) = &theirs {
            warnings.extend(theirs.duplicates.warning("references"));
            warnings.extend(theirs.size.is_none().then(|| different_sizes("references")));
        }
        // Statistics in a file are those of Inception, by custom.
        let stored = (extractor.name == INCEPTION_2015).then_some(&self.references);
        let statistics = stored.and_then(|it| it.statistics.as_ref());
        let precomputed_statistics = statistics.is_some();
        let statistics = statistics.or(theirs.as_ref().map(|it| &it.statistics)).context(NO_IMAGES)?;
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
                name: extractor.name.clone(),
                weights_sha256: extractor.weights_sha256.clone(),
                feature_size: ours.feature_size as u64,
            },
            neighbourhood: self.how.neighbourhood.into(),
            split_size: self.how.split_size.into(),
        };
        let protocol = Protocol { sample: self.description.clone(), evaluation };
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
        if let (names @ [_, ..], Some(predicted)) = (extractor.class_names, &ours.predicted) {
            match class_accuracy(names, predicted, &self.samples) {
                Ok(share) => metrics.add("class_accuracy", share),
                Err(why) => metrics.warnings.push(note(format!("class_accuracy is left out: {why}"))),
            }
        }
        metrics.overlap(&ours, theirs.as_ref(), self.how.neighbourhood as usize, self.terminal)?;
        let Metrics { metrics, warnings, .. } = metrics;
        Ok(Report { version: REPORT_VERSION, metrics, verdict, warnings, protocol })
    }

    /// The report to write.
    pub(super) fn out(&self) -> &OutputFile {
        &self.out
    }

    fn reference_set(&self, measured: Option<&Measured>, precomputed_statistics: bool) -> Result<ImageSet> {
        if let (Some(images), Some(measured)) = (&self.references.images, measured) {
            return image_set(images, measured, precomputed_statistics);
        }
        Ok(ImageSet {
            name: name_of(self.reference_path),
            sha256: sha256_of(self.reference_path)?,
            num_images: 0,
            image_size: None,
            classes: None,
            precomputed_statistics,
        })
    }
}

/// The protocol that was asked for, or the one of the samples' size.
fn named_protocol(how: &Measurement, samples: &Images) -> Result<Option<&'static NamedProtocol>> {
    match (how.protocol.as_deref(), samples.size) {
        (Some("none"), _) => Ok(None),
        (Some(name), _) => Ok(Some(NamedProtocol::find(name).context("--protocol")?)),
        (None, Some((height, width))) if height == width && how.extractor == Choice::Inception => {
            Ok(NamedProtocol::find(&format!("adm-imagenet-{height}")).ok())
        }
        (None, _) => Ok(None),
    }
}

/// Numbers so far, and warnings about them.
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
        let got = frechet_distance(ours, theirs).with_context(|| name.to_owned())?;
        self.add(name, got.distance);
        self.warnings.extend(got.warnings);
        Ok(())
    }

    /// Precision and recall, or why there are none.
    fn overlap(
        &mut self,
        ours: &Measured,
        theirs: Option<&Measured>,
        neighbourhood: usize,
        terminal: &Terminal,
    ) -> Result<()> {
        let rows = ours.features.as_ref().zip(theirs.and_then(|it| it.features.as_ref()));
        let enough = |it: &Rows| it.values.len() / it.size.max(1) > neighbourhood;
        let Some((ours, theirs)) = rows.filter(|(a, b)| enough(a) && enough(b)) else {
            self.warnings.push(note(format!(
                "precision and recall need images on both sides, more than {neighbourhood} and at most 100000"
            )));
            return Ok(());
        };
        let meter = Mutex::new(terminal.meter());
        let show = |share: f64| {
            if let Ok(mut meter) = meter.try_lock() {
                meter.show(share, format_args!("precision and recall: {:.0} %", 100.0 * share));
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

/// Share of images whose class, by name, is the one that the network predicts; or why there is none.
fn class_accuracy(names: &[&str], predicted: &[u32], samples: &Images) -> Result<f64> {
    let labels = samples.labels.as_ref().context("the samples have no labels")?;
    let mut classes = BTreeMap::new();
    for label in labels {
        if classes.contains_key(label) {
            continue;
        }
        let name = samples.class_names.get(label).with_context(|| {
            format!("nothing says which class the samples' label {label} is; name them with --classes")
        })?;
        let is_same = |it: &&str| name.split(',').any(|synonym| synonym.trim().eq_ignore_ascii_case(it));
        match names.iter().position(is_same) {
            Some(class) => classes.insert(label, class as u32),
            None => bail!("the samples' class {name:?} is none of {}", names.join(", ")),
        };
    }
    let right =
        predicted.iter().zip(labels).filter(|(class, label)| classes.get(label) == Some(*class)).count();
    Ok(right as f64 / predicted.len().max(1) as f64)
}

fn note(text: String) -> Warning {
    Warning::Note { text }
}

fn different_sizes(what: &str) -> Warning {
    note(format!("the {what} have different sizes; each image was resized separately"))
}

fn image_set(images: &Images, measured: &Measured, precomputed_statistics: bool) -> Result<ImageSet> {
    let path = &images.path;
    Ok(ImageSet {
        name: name_of(path),
        sha256: if path.is_dir() { measured.sha256.clone() } else { sha256_of(path)? },
        num_images: images.num_images as u64,
        image_size: measured.size.map(|(height, width)| (height as u64, width as u64)),
        classes: images.labels.as_deref().and_then(ClassCounts::of),
        precomputed_statistics,
    })
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).display().to_string()
}

/// The description that the generating program wrote beside a sample, if it did.
fn description(samples: &Path, notes: &mut Vec<Warning>) -> Result<Option<Value>> {
    let path = beside(samples, ".json");
    if !path.is_file() {
        return Ok(None);
    }
    let too_large = std::fs::metadata(&path)?.len() > MAX_DESCRIPTION_BYTES;
    let text = if too_large { None } else { std::fs::read(&path).ok() };
    let mut value: Option<Value> = text.and_then(|it| serde_json::from_slice(&it).ok());
    match value.as_mut().and_then(|it| it.get_mut("job")) {
        Some(job) => Ok(Some(job.take())),
        None => {
            notes.push(note(format!("{} does not describe the samples, and was left out", path.display())));
            Ok(None)
        }
    }
}

/// Names of labels in the description of a data set.
fn described_classes(job: &Value) -> BTreeMap<i64, String> {
    let protocol = &job["protocol"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let labels = list(&protocol["request"]["classes"]).into_iter().map(|it| it.as_i64());
    let names = list(&protocol["class_names"]).into_iter().map(|it| Some(it.as_str()?.to_owned()));
    labels.zip(names).filter_map(|(label, name)| label.zip(name)).collect()
}
