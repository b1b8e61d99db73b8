//! Errors of grids, guidance, solvers and sampling runs.

use std::fmt::{Debug, Display};

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, FlowError>;

/// Error of this crate.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum FlowError {
    /// A parameter, a name or a tensor's shape is not usable.
    #[error("{what} must be {expected}, got {got}")]
    Invalid {
        /// Name of the parameter.
        what: &'static str,
        /// Expected value, and where it helps a remedy.
        expected: String,
        /// Actual value.
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
    /// The caller stopped the run; its latents are dropped.
    #[error("stopped by the caller after step {step} of {num_steps}")]
    Cancelled {
        /// Index of the last completed step.
        step: usize,
        /// Number of steps of the grid.
        num_steps: usize,
    },
    /// A tensor operation failed, in the model or here.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl FlowError {
    pub(crate) fn invalid(what: &'static str, expected: impl Display, got: impl Debug) -> Self {
        Self::Invalid { what, expected: expected.to_string(), got: format!("{got:?}") }
    }
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
        let message = FlowError::invalid("solver", "one of euler, heun", "heun9").to_string();
        assert_eq!(message, "solver must be one of euler, heun, got \"heun9\"");
    }

    #[test]
    fn becomes_a_candle_error_with_the_same_words() {
        let error = || FlowError::invalid("timeshift", "above 0", -1.0);
        assert!(candle_core::Error::from(error()).to_string().contains(&error().to_string()));
    }
}
