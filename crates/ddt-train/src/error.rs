//! What can go wrong in training.

use std::path::PathBuf;

use ddt_files::CheckpointError;
use ddt_flow::FlowError;
use ddt_model::ModelError;

/// Why a run could not start, go on or be saved.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting makes no run.
    #[error("{name} does not make a training run, expected {expected}")]
    Config {
        /// The setting.
        name: &'static str,
        /// What it may be.
        expected: &'static str,
    },
    /// Data and its labels, or data and network, do not fit.
    #[error("training data does not fit: expected {expected}, got {got}")]
    Data {
        /// What was expected.
        expected: String,
        /// What was got.
        got: String,
    },
    /// The checkpoint belongs to another run.
    #[error(
        "{path} is a checkpoint of another run: its {what} differ; resume with those its state.json names, or choose another folder"
    )]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// A cache of latents was made from something else.
    #[error(
        "{path} is a cache of other latents: expected {expected}, got {got}; name another folder, or remove this one"
    )]
    OtherCache {
        /// The cache.
        path: PathBuf,
        /// What was asked for.
        expected: String,
        /// What the cache has.
        got: String,
    },
    /// A cache of latents does not have all its images yet.
    #[error("{path} is not finished: go on encoding with the command that began it")]
    UnfinishedCache {
        /// The cache.
        path: PathBuf,
    },
    /// Weights to start from do not fit.
    #[error("the weights to start from do not fit: {problem}")]
    Weights {
        /// What is wrong, expected and got.
        problem: String,
    },
    /// Another process holds the run or the cache.
    #[error("another process works in {path}: wait for it, or choose another folder")]
    Locked {
        /// Its folder.
        path: PathBuf,
    },
    /// A run's file could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The log lacks lines that belong to the checkpoint.
    #[error(
        "{path} is cut: it has {got} bytes, its checkpoint goes with {expected}; put the log back, or choose another folder"
    )]
    ShortLog {
        /// The log.
        path: PathBuf,
        /// Bytes that belong to the checkpoint.
        expected: u64,
        /// Bytes there are.
        got: u64,
    },
    /// A checkpoint contradicts itself.
    #[error("{path} is damaged: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, expected and got.
        problem: String,
    },
    /// A checkpoint exists, but none of them is whole.
    #[error("no checkpoint in {path} is whole, the newest: {reason}; move the folder away to start anew")]
    NoValidCheckpoint {
        /// The folder of checkpoints.
        path: PathBuf,
        /// What is wrong with the newest.
        reason: String,
    },
    /// The loss does not depend on a parameter, which could never learn.
    #[error("the loss gives parameter {name} no gradient: expected every parameter to take part in it")]
    NoGradient {
        /// The parameter.
        name: String,
    },
    /// Too many steps in a row gave a loss or gradient that is not finite or too large for f32.
    #[error(
        "{count} steps in a row, up to step {step}, gave a loss or gradient that is not finite or too large: lower the learning rate"
    )]
    NotFinite {
        /// Steps in a row.
        count: u64,
        /// The last of them.
        step: u64,
    },
    /// A tensor file failed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The network failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The flow's mathematics refused its input.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
