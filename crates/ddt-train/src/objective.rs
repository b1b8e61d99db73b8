//! What training minimises.

use candle_core::Tensor;

use crate::error::TrainError;

/// A network with a loss: what a [`Trainer`](crate::Trainer) trains.
///
/// The loss must be a pure function of parameters, batch and [`StepAt`], and depend on every parameter.
pub trait Objective {
    /// Some images, with all that the loss needs to know of them.
    type Batch;

    /// Everything beside the run's settings that makes it another run when it differs: sizes, weights of
    /// losses. Stands in every checkpoint and is compared on resume.
    fn identity(&self) -> serde_json::Value;

    /// The mean loss over a batch.
    ///
    /// # Errors
    /// When the batch does not fit the network.
    fn loss(&self, batch: &Self::Batch, at: StepAt) -> Result<Loss, TrainError>;
}

/// Where in a run a batch is: the address of its randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepAt {
    /// Root of all randomness.
    pub seed: u64,
    /// Steps taken before.
    pub step: u64,
    /// Position in the step's batch of the first image of this one.
    pub first: u64,
}

/// A loss and what it is made of.
#[derive(Debug, Clone)]
pub struct Loss {
    /// What is minimised, a scalar.
    pub total: Tensor,
    /// Its parts before weighting, scalars with names for the log; none if there is only one.
    pub parts: Vec<(&'static str, Tensor)>,
}
