//! Errors of networks and their files.

use std::path::{Path, PathBuf};

use ddt_files::FileError;
use ddt_flow::FlowError;
use ddt_sharing::PlanError;

use crate::config::ConfigError;

/// Why a network could not be loaded, saved or sampled from.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum ModelError {
    /// A configuration makes no network, or a preset does not exist.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Noise, labels, a plan or a guiding network do not fit the network; the message says what would.
    #[error("{0}")]
    Input(String),
    /// A file's description or its weights are not those of the network.
    #[error("{}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The problem, and the expected value.
        reason: String,
    },
    /// A file could not be read or written, or holds other tensors.
    #[error(transparent)]
    Checkpoint(#[from] FileError),
    /// Sampling failed or was cancelled.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// A plan was made for other steps.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl ModelError {
    pub(crate) fn file(file: &Path, reason: String) -> Self {
        Self::File { file: file.to_owned(), reason }
    }
}

/// Lets tensor code, whose results are candle's, use `?` on what builds networks.
impl From<ModelError> for candle_core::Error {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Candle(inner) => inner,
            other => Self::wrap(other),
        }
    }
}
