//! What can go wrong with a network and its files.

use ddt_files::CheckpointError;
use ddt_flow::FlowError;
use ddt_sharing::PlanError;

use crate::{
    config::ConfigError,
    network_config::{Family, NetworkConfig},
};

/// Why a network could not be loaded, saved or sampled from.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum ModelError {
    /// Sizes make no network, or a preset does not exist.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Positions in a file are not the formula's.
    #[error(
        "{name} of {file} differs from the sines and cosines of its family by {largest}, expected at most {allowed}"
    )]
    Positions {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// The largest difference.
        largest: f64,
        /// The largest allowed.
        allowed: f64,
    },
    /// A file could not be read or written, or does not hold the network.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file's own description of the network cannot be read.
    #[error("metadata {key:?} of {file} is malformed: {reason}")]
    Metadata {
        /// The file.
        file: String,
        /// The metadata's key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The file does not say its sizes, and none were given.
    #[error("{file} does not say its sizes: name a preset, one of {known}")]
    ConfigNeeded {
        /// The file.
        file: String,
        /// Presets that exist.
        known: String,
    },
    /// The file says other sizes than were asked for.
    #[error("{file} holds {found:?}, expected {expected:?}")]
    ConfigDiffers {
        /// The file.
        file: String,
        /// Sizes asked for.
        expected: Box<NetworkConfig>,
        /// Sizes the file says.
        found: Box<NetworkConfig>,
    },
    /// Two halves are needed where a network has none.
    #[error(
        "a network of family {family:?} has no condition encoder and velocity decoder: expected one of two halves, or no plan"
    )]
    NoHalves {
        /// The network's family.
        family: Family,
    },
    /// Weights to write are not those of the sizes.
    #[error(
        "{file} is not written: {name} should have shape {expected:?}, but has {got:?} (None: no such weight)"
    )]
    Weight {
        /// The file.
        file: String,
        /// The first weight that does not fit.
        name: String,
        /// Its shape in a network of these sizes.
        expected: Option<Vec<usize>>,
        /// Its shape among the weights given.
        got: Option<Vec<usize>>,
    },
    /// A label the network has no row for.
    #[error(
        "label {label} of image {image} is out of range, expected a class in 0..{num_classes}, or {num_classes} for no class"
    )]
    Label {
        /// Position in the batch.
        image: usize,
        /// The label.
        label: u32,
        /// Classes of the network.
        num_classes: usize,
    },
    /// Noise of a shape the network cannot take.
    #[error(
        "noise of shape {got:?} does not fit, expected ({images}, {channels}, H, W) with H and W positive multiples of {patch_size}"
    )]
    Noise {
        /// Its shape.
        got: Vec<usize>,
        /// Labels given.
        images: usize,
        /// Channels of the network.
        channels: usize,
        /// Patch of the network.
        patch_size: usize,
    },
    /// A weaker network to guide away from is of another task.
    #[error("the weaker network has {got:?} channels and classes, expected those of the other, {expected:?}")]
    Weaker {
        /// Channels and classes of the network that is guided.
        expected: (usize, usize),
        /// Those of the weaker one.
        got: (usize, usize),
    },
    /// Sampling failed or was cancelled.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// A plan does not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
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
