//! What a solver asks of a model: the traits that networks and their wrappers implement.
//!
//! ```text
//! Decoupled --kept between steps--> ClassConditional --Guided--> VelocityModel --> solve
//! ```
//!
//! Shape letters: `B` samples in the batch; `2B` rows when both halves of guidance are wanted.

use candle_core::{Result, Tensor};

/// Where a solver evaluates the velocity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Index of the step in its grid; a solver with several stages evaluates several times in one step.
    pub step: usize,
    /// Time at which that step starts. What is decided once a step goes by it: whether to guide, and
    /// whether to recompute what is kept.
    pub step_t: f64,
    /// Flow time in [0, 1] of this evaluation, inside the step or at one of its ends; 0 is noise, 1 is data.
    pub t: f64,
}

/// Anything that gives the velocity `dx_t/dt` for `(x_t, t)`.
pub trait VelocityModel {
    /// What the model keeps between evaluations of one run. The caller owns it; a fresh run starts
    /// from its default.
    type State: Default;

    /// The velocity at `x_t`.
    ///
    /// # Shapes
    ///
    /// `x_t`: (B, ...) in f32 -> (B, ...)
    ///
    /// # Errors
    ///
    /// A tensor operation fails.
    fn velocity(&self, x_t: &Tensor, at: Evaluation, state: &mut Self::State) -> Result<Tensor>;
}

/// Which rows of a class-conditional batch are wanted.
///
/// With both halves the class rows come first, so the class rows alone are a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CfgBatch {
    /// The `B` class rows alone.
    Cond,
    /// The `B` class rows, then the `B` rows without a class.
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
}

/// A model that can be asked with and without its class labels, which the implementor holds.
pub trait ClassConditional {
    /// What the model keeps between evaluations of one run, as in [`VelocityModel`].
    type State: Default;

    /// The velocities of the wanted rows, at the same `x_t` in both halves.
    ///
    /// # Shapes
    ///
    /// `x_t`: (B, ...) in f32, whatever `rows` is -> (B, ...) for [`CfgBatch::Cond`], (2B, ...) for
    /// [`CfgBatch::CondUncond`] with the class rows first
    ///
    /// # Errors
    ///
    /// The batch does not fit the labels, or a tensor operation fails.
    fn velocity_rows(
        &self,
        x_t: &Tensor,
        at: Evaluation,
        rows: CfgBatch,
        state: &mut Self::State,
    ) -> Result<Tensor>;
}

/// A class-conditional network whose expensive half can be kept for later steps (eq. 6 of arXiv:2504.05741).
///
/// `decode(x_t, &encode(x_t, t, rows)?, rows)` is the whole network; calling `decode` again with what
/// was kept and a later `x_t` is sharing. The labels are inside the implementor.
pub trait Decoupled {
    /// What [`encode`](Self::encode) computes and [`decode`](Self::decode) needs; the time is in it.
    type Cached;

    /// Runs the expensive half.
    ///
    /// # Shapes
    ///
    /// `x_t`: (B, ...) in f32 -> something kept for `rows.count(B)` rows
    ///
    /// # Errors
    ///
    /// The batch does not fit the labels, or a tensor operation fails.
    fn encode(&self, x_t: &Tensor, t: f64, rows: CfgBatch) -> Result<Self::Cached>;

    /// Runs the cheap half, for the rows wanted.
    ///
    /// What was kept for [`CfgBatch::CondUncond`] serves [`CfgBatch::Cond`] too, by its first half.
    ///
    /// # Shapes
    ///
    /// `x_t`: (B, ...) in f32 -> velocities, (B, ...) for [`CfgBatch::Cond`], (2B, ...) for [`CfgBatch::CondUncond`]
    ///
    /// # Errors
    ///
    /// `kept` is for fewer rows than are wanted or for another batch, or a tensor operation fails.
    fn decode(&self, x_t: &Tensor, kept: &Self::Cached, rows: CfgBatch) -> Result<Tensor>;
}

impl<M: VelocityModel + ?Sized> VelocityModel for &M {
    type State = M::State;

    fn velocity(&self, x_t: &Tensor, at: Evaluation, state: &mut Self::State) -> Result<Tensor> {
        (**self).velocity(x_t, at, state)
    }
}

impl<M: ClassConditional + ?Sized> ClassConditional for &M {
    type State = M::State;

    fn velocity_rows(
        &self,
        x_t: &Tensor,
        at: Evaluation,
        rows: CfgBatch,
        state: &mut Self::State,
    ) -> Result<Tensor> {
        (**self).velocity_rows(x_t, at, rows, state)
    }
}

/// Makes a [`VelocityModel`] without state of a function of `(x_t, t)`.
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
