//! Traits between networks and solvers.
//!
//! ```text
//! Decoupled --cached between steps--> ClassConditional --Guided--> VelocityModel --> solve
//! ```
//!
//! Shape letters: `B` samples; `2B` rows in a conditional + unconditional batch.

use candle_core::{Result, Tensor};

/// Point at which a solver evaluates the velocity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Index of the step in its grid; a solver of several stages evaluates several times per step.
    pub step: usize,
    /// Time at the start of that step. It decides for the whole step whether to guide and whether to
    /// recompute cached values.
    pub step_t: f64,
    /// Flow time in [0, 1] of this evaluation, between the ends of the step; 0 is noise, 1 is data.
    pub t: f64,
}

/// A model of the velocity `dx_t/dt` at `(x_t, t)`.
pub trait VelocityModel {
    /// Values cached between the evaluations of one run. The caller owns them; a run starts from the default.
    type State: Default;

    /// Velocity at `x_t`.
    ///
    /// # Shapes
    /// `x_t`: (B, ...) in f32 -> (B, ...)
    ///
    /// # Errors
    /// A tensor operation fails.
    fn velocity(&self, x_t: &Tensor, at: Evaluation, state: &mut Self::State) -> Result<Tensor>;
}

/// Batch of classifier-free guidance.
///
/// The conditional rows come first, so [`Cond`](Self::Cond) is a prefix of [`CondUncond`](Self::CondUncond).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CfgBatch {
    /// `B` rows with their class.
    Cond,
    /// `B` rows with their class, then the same `B` without one.
    CondUncond,
}

impl CfgBatch {
    /// Number of rows for `batch` samples: `B` or `2B`.
    pub fn count(self, batch: usize) -> usize {
        match self {
            CfgBatch::Cond => batch,
            CfgBatch::CondUncond => batch.saturating_mul(2),
        }
    }

    /// The rows that a network sees: the batch, and the same again for "no class".
    ///
    /// # Shapes
    /// `x_t`: (B, ...) -> (B, ...) or (2B, ...)
    ///
    /// # Errors
    /// `x_t` is a scalar.
    pub fn stack(self, x_t: &Tensor) -> Result<Tensor> {
        match self {
            CfgBatch::Cond => Ok(x_t.clone()),
            CfgBatch::CondUncond => Tensor::cat(&[x_t, x_t], 0),
        }
    }
}

/// A model that runs with or without the class labels it holds.
pub trait ClassConditional {
    /// Values cached between the evaluations of one run, as in [`VelocityModel`].
    type State: Default;

    /// Velocities of a batch, at the same `x_t` with and without classes.
    ///
    /// # Shapes
    /// `x_t`: (B, ...) in f32 -> (B, ...) for [`CfgBatch::Cond`], (2B, ...) for [`CfgBatch::CondUncond`]
    ///
    /// # Errors
    /// `x_t` does not match the labels, or a tensor operation fails.
    fn velocities(
        &self,
        x_t: &Tensor,
        at: Evaluation,
        batch: CfgBatch,
        state: &mut Self::State,
    ) -> Result<Tensor>;
}

/// A class-conditional network of two halves, whose encoder output is cached for later steps (eq. 6 of
/// arXiv:2504.05741).
///
/// `decode(x_t, &[(&encode(x_t, t, batch)?, 1.0)], batch)` is the whole network; decoding a later `x_t` with the same
/// cached output, or with a weighted sum of a few, is encoder sharing. The implementor holds the labels.
pub trait Decoupled {
    /// Output of [`encode`](Self::encode), which contains the time.
    type Cached;

    /// Runs the encoder.
    ///
    /// # Shapes
    /// `x_t`: (B, ...) in f32 -> cached output for `batch.count(B)` rows
    ///
    /// # Errors
    /// `x_t` does not match the labels, or a tensor operation fails.
    fn encode(&self, x_t: &Tensor, t: f64, batch: CfgBatch) -> Result<Self::Cached>;

    /// Runs the decoder on the sum of each of the `cached` outputs times its weight.
    ///
    /// An output cached for [`CfgBatch::CondUncond`] also serves [`CfgBatch::Cond`], with its first half.
    ///
    /// # Shapes
    /// `x_t`: (B, ...) in f32 -> (B, ...) for [`CfgBatch::Cond`], (2B, ...) for [`CfgBatch::CondUncond`]
    ///
    /// # Errors
    /// `cached` is empty, has fewer rows than `batch` needs or is of another `B`, or a tensor operation fails.
    fn decode(&self, x_t: &Tensor, cached: &[(&Self::Cached, f64)], batch: CfgBatch) -> Result<Tensor>;
}

/// A [`VelocityModel`] without state, made from a function of `(x_t, t)`.
#[derive(Clone, Copy, Debug)]
pub struct FromFn<F>(F);

impl<F: Fn(&Tensor, f64) -> Result<Tensor>> FromFn<F> {
    /// Wraps the function.
    pub fn new(function: F) -> Self {
        Self(function)
    }
}

impl<F: Fn(&Tensor, f64) -> Result<Tensor>> VelocityModel for FromFn<F> {
    type State = ();

    fn velocity(&self, x_t: &Tensor, at: Evaluation, _state: &mut ()) -> Result<Tensor> {
        (self.0)(x_t, at.t)
    }
}
