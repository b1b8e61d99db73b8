//! Sample quality: Fréchet distance, Inception Score, precision and recall, with the protocol of each number.
//!
//! The mathematics takes rows of numbers that some network computed from images; it knows neither images nor
//! networks, computes in f64, and no result depends on the number of threads.
//!
//! - [`Features`] is a checked view of rows: whole and finite.
//! - [`Moments`] accumulates rows as they come, and merges those of several processes; it ends as [`Statistics`],
//!   a mean and a covariance. Two of these have a [`frechet_distance`] (FID, and sFID on spatial features).
//! - [`InceptionScoreAccumulator`] takes logits in the sample's order; [`precision_recall`] compares rows with
//!   rows.
//! - [`Warning`] is a reason not to trust a number: a singular covariance, rows [sorted by
//!   class](sorted_by_class), [`Duplicates`].
//! - [`Protocol`] states how a sample was generated and measured, [`NamedProtocol`] whether that is what papers
//!   call FID, [`Report`] stores all of it, and [`explain`] lists the differences between two reports.
//!
//! ```
//! use ddt_metrics::{Features, Moments, frechet_distance, precision_recall};
//!
//! // Rows of two numbers: the samples arrive in two batches, one to the right of the references.
//! let references = [0.0, 0.0, 0.0, 2.0, 2.0, 0.0, 2.0, 2.0, 1.0, 1.0];
//! let samples: Vec<f32> = references.chunks(2).flat_map(|row| [row[0] + 1.0, row[1]]).collect();
//! let (mut ours, mut theirs) = (Moments::new(2)?, Moments::new(2)?);
//! ours.push(Features::new(&samples[..6], 2)?)?;
//! ours.push(Features::new(&samples[6..], 2)?)?;
//! theirs.push(Features::new(&references, 2)?)?;
//! let distance = frechet_distance(&ours.finish()?, &theirs.finish()?)?;
//! assert!((distance.distance - 1.0).abs() < 1e-12 && distance.warnings.is_empty());
//!
//! let overlap = precision_recall(Features::new(&samples, 2)?, Features::new(&references, 2)?, 3)?;
//! assert_eq!((overlap.precision, overlap.recall), (1.0, 1.0));
//! # Ok::<(), ddt_metrics::MetricsError>(())
//! ```

#![forbid(unsafe_code)]

mod error;
mod features;
mod frechet;
mod inception_score;
mod moments;
mod neighbours;
mod precision_recall;
mod protocol;
mod report;
mod statistics;
mod warnings;

pub use error::MetricsError;
pub use features::Features;
pub use frechet::{FrechetDistance, frechet_distance};
pub use inception_score::{InceptionScore, InceptionScoreAccumulator, SPLIT_SIZE, inception_score};
pub use moments::{MomentParts, Moments};
pub use precision_recall::{
    NEIGHBOURHOOD, PrecisionRecall, precision_recall, precision_recall_with_progress,
};
pub use protocol::{
    ClassCounts, Departure, EvaluationProtocol, Evaluator, INCEPTION_2015, ImageSet, NamedProtocol, Protocol,
    Quantity, Verdict,
};
pub use report::{Difference, Explanation, Metric, REPORT_VERSION, Report, explain};
pub use statistics::Statistics;
pub use warnings::{Duplicates, Warning, predicted_classes, sorted_by_class};
