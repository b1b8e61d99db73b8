#![doc = include_str!("../README.md")]
//!
//! # Contents
//!
//! - [`Features`] is a checked view of rows: whole and finite.
//! - [`Moments`] accumulates rows as they come, and merges moments of other rows; it ends as [`Statistics`],
//!   a mean and a covariance. Two of these have a [`frechet_distance`] (FID, and sFID on spatial features).
//! - [`InceptionScoreAccumulator`] takes logits in the sample's order; [`precision_recall`] compares rows with
//!   rows.
//! - [`Warning`] is a reason not to trust a number: a singular covariance, rows [sorted by
//!   class](sorted_by_class), [`Duplicates`].
//! - [`Protocol`] states how a sample was generated and measured, [`NamedProtocol`] whether that is what papers
//!   call FID, [`Report`] stores all of it, and [`explain`] lists the differences between two reports.

#![forbid(unsafe_code)]

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
mod statistics;
mod warnings;

pub use error::MetricsError;
pub use features::Features;
pub use frechet::{FrechetDistance, frechet_distance};
pub use inception_score::{InceptionScore, InceptionScoreAccumulator, SPLIT_SIZE, inception_score};
pub use moments::Moments;
pub use named_protocol::{NamedProtocol, Published, Setting};
pub use precision_recall::{
    NEIGHBOURHOOD, PrecisionRecall, precision_recall, precision_recall_with_progress,
};
pub use protocol::{
    ClassCounts, Departure, EvaluationProtocol, Evaluator, INCEPTION_2015, ImageSet, Protocol, Quantity,
    Verdict,
};
pub use report::{Difference, Explanation, Metric, REPORT_VERSION, Report, explain};
pub use statistics::Statistics;
pub use warnings::{Duplicates, Warning, predicted_classes, sorted_by_class};
