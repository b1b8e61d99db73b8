//! The one error type of this crate.

use crate::solver::SOLVER_NAMES;
use crate::time_grid::TimeGrid;

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, FlowError>;

/// Why a grid, a guidance or a solution could not be had.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum FlowError {
    /// The number of steps is zero or beyond [`TimeGrid::MAX_STEPS`].
    #[error("number of steps must be in 1..={}, got {got}", TimeGrid::MAX_STEPS)]
    NumSteps {
        /// The number asked for.
        got: usize,
    },
    /// The length of the last step is outside (0, 1] or not a number.
    #[error("last step must be finite and in (0, 1], got {got}; leave it out for 1 / number of steps")]
    LastStep {
        /// The length asked for.
        got: f64,
    },
    /// The time shift is not positive or not a number.
    #[error("timeshift must be finite and above 0, got {got}; 1 means no shift")]
    Timeshift {
        /// The shift asked for.
        got: f64,
    },
    /// Two neighbouring times of a grid are equal in f64.
    #[error(
        "times must increase, but step {step} of {num_steps} starts and ends at t = {t}; \
         with more than one step use a last step inside (0, 1), and a timeshift nearer 1"
    )]
    EmptyStep {
        /// Index of the step of length zero.
        step: usize,
        /// The time at both its ends.
        t: f64,
        /// Number of steps of the grid.
        num_steps: usize,
    },
    /// The guidance scale is infinite or not a number.
    #[error("guidance scale must be finite, got {got}; 1 means no guidance")]
    GuidanceScale {
        /// The scale asked for.
        got: f64,
    },
    /// The guidance interval is reversed, empty or not finite.
    #[error("guidance interval must be finite with low < high, got ({low}, {high})")]
    GuidanceInterval {
        /// Lower bound asked for.
        low: f64,
        /// Upper bound asked for.
        high: f64,
    },
    /// An Adams-Bashforth order outside 1..=4.
    #[error("order of the adams-bashforth solver must be in 1..=4, got {got}")]
    SolverOrder {
        /// The order asked for.
        got: usize,
    },
    /// A tolerance outside [1e-12, 1) of an adaptive solver.
    #[error("tolerance of an adaptive solver must be at least 1e-12 and below 1, got {got}; 1e-4 is usual")]
    Tolerance {
        /// The tolerance asked for.
        got: f64,
    },
    /// No solver has this name.
    #[error("no solver is named {got:?}; expected one of {}", SOLVER_NAMES.join(", "))]
    UnknownSolver {
        /// The name asked for.
        got: String,
    },
    /// A sample of the batch became infinite or not a number.
    #[error(
        "sample {sample} of the batch is not finite after step {step} (t = {t}); \
         check the weights, and the number type of the network"
    )]
    NonFinite {
        /// Index of the step that produced it.
        step: usize,
        /// Time at the start of that step.
        t: f64,
        /// First such sample, counted from 0 within the batch.
        sample: usize,
    },
    /// A tensor, or a list that runs beside one, has the wrong size.
    #[error("expected {what} of {expected}, got {got:?}")]
    ShapeMismatch {
        /// What is misshapen.
        what: &'static str,
        /// The size or property it should have had.
        expected: String,
        /// The size it has.
        got: Vec<usize>,
    },
    /// The caller asked to stop; the latents of the unfinished run are dropped.
    #[error("stopped by the caller after step {step} of {num_steps}")]
    Cancelled {
        /// Index of the last step that was completed.
        step: usize,
        /// Number of steps of the grid.
        num_steps: usize,
    },
    /// A tensor operation failed, in the model or here.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Lets tensor code, whose results are candle's, use `?` on this crate's functions.
impl From<FlowError> for candle_core::Error {
    fn from(err: FlowError) -> Self {
        match err {
            FlowError::Candle(inner) => inner,
            other => candle_core::Error::wrap(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_culprit() {
        let message = FlowError::NonFinite { step: 3, t: 0.25, sample: 1 }.to_string();
        assert!(message.contains("sample 1") && message.contains("step 3") && message.contains("0.25"));
        let message = FlowError::UnknownSolver { got: "heun9".into() }.to_string();
        assert!(message.contains("\"heun9\"") && message.contains("euler") && message.contains("adams4"));
    }

    #[test]
    fn becomes_a_candle_error_with_the_same_words() {
        let message = FlowError::Timeshift { got: -1.0 }.to_string();
        let err = candle_core::Error::from(FlowError::Timeshift { got: -1.0 });
        assert!(err.to_string().contains(&message));
    }
}
