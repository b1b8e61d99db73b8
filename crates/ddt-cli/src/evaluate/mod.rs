//! `ddt evaluate`: generated images against reference images, in numbers that say how they were measured.

mod comparison;
mod extractor;
mod features;
mod input;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::{Context, Result};
use ddt::args::Threads;
use ddt_dist::{Launch, connect};
use ddt_metrics::{Explanation, NamedProtocol, Published, Report, explain};

pub(crate) use self::{
    comparison::{Comparison, Measurement, check_references},
    extractor::{Choice, Extractor},
};
use crate::{
    ranks::{device_of, together},
    terminal::Terminal,
};

const EXAMPLES: &str = "\
Examples:
  ddt evaluate out/dataset.npz VIRTUAL_imagenet256_labeled.npz --weights pt_inception-2015-12-05-6726825d.pth
  ddt evaluate generated-photos/ photos/ --extractor dinov2 --weights dinov2_vitl14_pretrain.pth
  ddt evaluate out/dataset.npz out/cifar10/train --extractor cifar10-classifier
  mpirun -n 4 ddt evaluate out/dataset.npz photos/ --extractor dinov2 --weights dinov2_vitl14_pretrain.pth
                                                     four processes share the network's work (docs/scale.md)
  ddt evaluate --explain ours.json theirs.json
Features are cached under a hash of the images: an evaluation that was stopped resumes, and nothing is measured twice.";

/// Compares generated images with reference images by the features that a network computes from them.
///
/// A number is called fid only if counts, reference and evaluator are those of a named protocol; otherwise it is called
/// frechet_distance, with the reasons.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The generated images: an npz file with arr_0 (uint8, N x H x W x 3), or a folder of JPEG, PNG, WebP and BMP
    /// files, in class folders or none
    #[arg(value_name = "SAMPLES", required_unless_present = "explain")]
    samples: Option<PathBuf>,
    /// Images to compare with: the same, or an npz file with mu and sigma such as ADM's reference batches
    #[arg(value_name = "REFERENCES", required_unless_present = "explain")]
    references: Option<PathBuf>,
    #[command(flatten)]
    measurement: Measurement,
    #[command(flatten)]
    threads: Threads,
    /// List the differences of two reports, and do nothing else
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], conflicts_with_all = ["samples", "references"])]
    explain: Vec<PathBuf>,
}

/// Compares, writes the report, and returns the table; or explains two reports. Features made so far are kept.
pub(crate) fn run(args: &Args, terminal: &Terminal) -> Result<String> {
    if let [first, second] = args.explain.as_slice() {
        return Ok(explanation(&explain(&Report::read(first)?, &Report::read(second)?)));
    }
    let launch = Launch::from_env()?;
    let group = connect(&launch)?;
    let mut args = args.clone();
    args.measurement.device = device_of(args.measurement.device, &launch);
    let terminal = terminal.of_rank(group.rank());
    let prepared = || {
        args.threads.start()?;
        let comparison = args.prepare(&terminal)?;
        let extractor = args.measurement.load(group.as_ref(), &terminal)?;
        comparison.fill(group.as_ref(), &extractor)?;
        Ok((comparison, extractor))
    };
    // The rest is rank 0's.
    let (comparison, extractor) = together(group.as_ref(), prepared())?;
    finish(&comparison, &extractor)
}

impl Args {
    fn prepare<'a>(&'a self, terminal: &'a Terminal) -> Result<Comparison<'a>> {
        let both = self.samples.as_deref().zip(self.references.as_deref());
        let (samples, references) = both.context("expected SAMPLES and REFERENCES")?;
        Comparison::prepare(samples, references, &self.measurement, terminal)
    }
}

/// Measures, writes the report, and returns the table.
pub(crate) fn finish(comparison: &Comparison<'_>, extractor: &Extractor) -> Result<String> {
    let report = comparison.evaluate(extractor)?;
    let out = comparison.out();
    out.write(report.to_json()?.as_bytes())?;
    Ok(format!("{}\nwrote {}", table(&report), out.path().display()))
}

/// The numbers, the verdict and the warnings.
fn table(report: &Report) -> String {
    let evaluation = &report.protocol.evaluation;
    let (samples, references) = (&evaluation.samples, &evaluation.references);
    let mut lines = vec![format!(
        "{} ({} images) against {} ({}), by {}",
        samples.name,
        samples.num_images,
        references.name,
        match (references.num_images, references.precomputed_statistics) {
            (0, _) => "statistics alone".to_owned(),
            (count, true) => format!("its statistics, {count} images"),
            (count, false) => format!("{count} images"),
        },
        evaluation.evaluator.name
    )];
    let widest = report.metrics.iter().map(|it| it.name.len()).max().unwrap_or(0);
    lines.extend(report.metrics.iter().map(|it| format!("  {:widest$}  {}", it.name, number(it.value))));
    if let Some(verdict) = &report.verdict {
        let protocol = &verdict.protocol;
        if verdict.follows() {
            lines.push(format!("measured as {protocol} requires"));
        } else {
            lines.push(format!("not the numbers of {protocol}, which requires otherwise:"));
            lines.extend(verdict.departures.iter().map(|it| format!("  {it}")));
        }
        lines.extend(verdict.unverified.iter().map(|it| format!("  unknown: {it}")));
        // A report of another version may name a protocol that is not known here.
        let named = NamedProtocol::find(protocol).ok();
        lines.extend(named.iter().flat_map(|it| it.published).map(published));
    }
    lines.extend(report.warnings.iter().map(|it| format!("warning: {it}")));
    lines.join("\n")
}

/// A published result.
fn published(it: &Published) -> String {
    let numbers = it.numbers.iter().map(|(name, value)| format!("{name} {value}"));
    format!("published: {} ({})", numbers.collect::<Vec<_>>().join(", "), it.of)
}

/// The differences of two reports.
fn explanation(it: &Explanation) -> String {
    let mut lines = vec!["numbers:".to_owned()];
    lines.extend(it.metrics.iter().map(|it| format!("  {it}")));
    if it.protocol.is_empty() {
        lines.push("both were measured in the same way".to_owned());
    } else {
        lines.push("differences in how they were measured:".to_owned());
        lines.extend(it.protocol.iter().map(|it| format!("  {it}")));
    }
    if !it.unknown.is_empty() {
        lines.push(format!("unknown of either: {}", it.unknown.join(", ")));
    }
    lines.join("\n")
}

/// Six digits, the small ones too.
fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.3e}") } else { format!("{value:.4}") }
}
