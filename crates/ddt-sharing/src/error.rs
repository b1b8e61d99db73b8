//! Errors of statistics, plans and their files.

use std::fmt::Display;

/// Error of this crate.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum PlanError {
    /// An argument or a value in a file is not usable, or does not fit the others.
    #[error("{what} must be {expected}, got {got}")]
    Invalid {
        /// Name of the parameter.
        what: String,
        /// Expected value, and where it helps a remedy.
        expected: String,
        /// Actual value.
        got: String,
    },
    /// A plan or a measurement was made with other settings.
    #[error("made for {setting} {made_for}, wanted {wanted}; measure and plan again with this setting")]
    WrongSetting {
        /// Name of the first setting that differs.
        setting: String,
        /// Value in the file.
        made_for: String,
        /// Value in the sampler.
        wanted: String,
    },
    /// A file is not JSON of the expected structure.
    #[error("malformed file")]
    Malformed(#[from] serde_json::Error),
}

impl PlanError {
    pub(crate) fn invalid(what: impl Display, expected: impl Display, got: impl Display) -> Self {
        Self::Invalid { what: what.to_string(), expected: expected.to_string(), got: got.to_string() }
    }

    /// Refuses `what` unless it has as many steps as expected.
    pub(crate) fn check_steps(what: &str, expected: usize, got: usize) -> Result<(), Self> {
        if got == expected { Ok(()) } else { Err(Self::invalid(what, format!("of {expected} steps"), got)) }
    }
}
