//! Errors of training.

use std::{error::Error, path::PathBuf};

use ddt_data::DataError;
use ddt_dist::{DistError, RankFailed};
use ddt_files::FileError;
use ddt_flow::FlowError;
use ddt_model::ModelError;

/// Why a run could not start, continue or be saved.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting that makes no run.
    #[error("{name}: expected {expected}, got {got}")]
    Setting {
        /// Name of the setting, or the file of settings.
        name: String,
        /// Valid values.
        expected: String,
        /// The value given.
        got: String,
    },
    /// Data that does not fit its labels, the network, or the weights.
    #[error("training data does not fit: expected {expected}, got {got}")]
    Data {
        /// The expected value.
        expected: String,
        /// The value given.
        got: String,
    },
    /// Weights to start from that do not fit the network.
    #[error("the weights to start from do not fit: {problem}")]
    Weights {
        /// The problem: expected and got.
        problem: String,
    },
    /// A checkpoint of another run.
    #[error(
        "{path} is a checkpoint of another run: its {what} differ; resume with those its state.json names, or choose another folder"
    )]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// The difference.
        what: &'static str,
    },
    /// A run or cache that another process holds.
    #[error("another process works in {path}: wait for it, or choose another folder")]
    Locked {
        /// Its folder.
        path: PathBuf,
    },
    /// A file or folder of a run or cache that contradicts itself or what was asked for.
    #[error("{path}: {problem}")]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// The problem: expected, got, and the remedy.
        problem: String,
    },
    /// A parameter on which the loss does not depend, so that it would never learn.
    #[error("the loss gives parameter {name} no gradient: expected every parameter to take part in it")]
    NoGradient {
        /// The parameter.
        name: String,
    },
    /// Too many steps in a row with a loss or gradient that is not finite or too large for f32.
    #[error(
        "{count} steps in a row, up to step {step}, gave a loss or gradient that is not finite or too large: lower the learning rate"
    )]
    NotFinite {
        /// Steps in a row.
        count: u64,
        /// The last of them.
        step: u64,
    },
    /// The caller asked to stop; everything is saved, and the same call resumes.
    #[error("stopped on request; the same command resumes")]
    Stopped,
    /// One of several ranks failed; all of them return this.
    #[error(transparent)]
    Rank(#[from] RankFailed),
    /// Ranks that cannot work together.
    #[error(transparent)]
    Group(#[from] DistError),
    /// Photos that cannot be listed or read.
    #[error(transparent)]
    Photos(#[from] DataError),
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// An error of the network.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An error of the flow's mathematics.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// An error of a tensor operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl TrainError {
    pub(crate) fn data(expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Data { expected: expected.into(), got: got.into() }
    }

    pub(crate) fn setting(name: &str, expected: impl Into<String>, got: impl ToString) -> Self {
        Self::Setting { name: name.to_owned(), expected: expected.into(), got: got.to_string() }
    }
}

/// An error with its causes, each once.
pub(crate) fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
