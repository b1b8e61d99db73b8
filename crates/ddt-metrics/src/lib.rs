//! Sample quality: Fréchet distance, Inception Score, precision and recall, and how they came about.
//!
//! The mathematics takes rows of numbers that some network has made of images; it knows neither images nor
//! networks, computes in f64, and no result depends on the number of threads.
//!
//! How the nouns meet:
//!
//! - [`Features`] is a checked view of rows: whole and finite.
//! - [`Moments`] sums rows as they come, and merges what several processes have summed; it ends as
//!   [`Statistics`], a mean and a covariance. Two of these have a [`frechet_distance`] (FID, and sFID on
//!   spatial features).
//! - [`InceptionScoreAccumulator`] takes logits in the sample's order; [`precision_recall`] compares rows with
//!   rows.
//! - [`Warning`] is what a reader should know beside a number: a covariance without full rank, rows
//!   [sorted by class](sorted_by_class), [`Duplicates`].
//! - A number is worth what is known of it: [`Protocol`] says how the sample was drawn and measured,
//!   [`NamedProtocol`] whether that is what papers call FID, [`Report`] keeps all of it, and [`explain`] says
//!   what stands between two reports.
//!
//! ```
//! use ddt_metrics::{Features, Moments, frechet_distance, precision_recall};
//!
//! // Rows of two numbers: the samples arrive in two batches, and lie one to the right of the references.
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

mod difference;
mod distances;
mod duplicates;
mod error;
mod features;
mod frechet;
mod inception_score;
mod moments;
mod named_protocol;
mod neighbours;
mod precision_recall;
mod protocol;
mod report;
mod row_order;
mod statistics;
#[cfg(test)]
mod testing;
mod warning;

pub use difference::{Difference, Explanation, explain};
pub use duplicates::Duplicates;
pub use error::MetricsError;
pub use features::{Features, MAX_FEATURE_SIZE};
pub use frechet::{FrechetDistance, frechet_distance};
pub use inception_score::{InceptionScore, InceptionScoreAccumulator, SPLIT_SIZE, inception_score};
pub use moments::{MomentParts, Moments};
pub use named_protocol::{Departure, NAMED_PROTOCOLS, NamedProtocol, Quantity, Verdict};
pub use precision_recall::{
    NEIGHBOURHOOD, PrecisionRecall, precision_recall, precision_recall_with_progress,
};
pub use protocol::{ClassCounts, EvaluationProtocol, Evaluator, INCEPTION_2015, ImageSet, Protocol};
pub use report::{MAX_REPORT_BYTES, Metric, REPORT_VERSION, Report};
pub use row_order::{predicted_classes, sorted_by_class};
pub use statistics::Statistics;
pub use warning::Warning;
