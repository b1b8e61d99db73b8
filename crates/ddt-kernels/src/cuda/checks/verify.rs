//! Every kernel against f64.

use half::bf16;

use super::data::relative_error;
use super::{attention, elementwise, images, step};
use crate::cuda::{Cuda, Float, Result};

/// A kernel's result compared with f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The kernel, with its element type.
    pub name: String,
    /// What it was run on.
    pub shape: String,
    /// Root mean square of the error, relative to that of the exact result.
    pub error_rms_relative: f64,
    /// The most that is allowed.
    pub tolerance: f64,
}

impl Check {
    /// A result of one rounding to `T`, everything before it in f32.
    pub(super) fn rounded<T: Float>(name: &str, shape: String, got: &[T], want: &[f64]) -> Self {
        let tolerance = if T::NAME == bf16::NAME { 3e-3 } else { 1e-6 };
        Self {
            name: format!("{name} {}", T::NAME),
            shape,
            error_rms_relative: relative_error(got, want),
            tolerance,
        }
    }

    /// One JSON object.
    pub fn to_json(&self) -> String {
        let Self { name, shape, error_rms_relative, tolerance } = self;
        // JSON has no infinity.
        let error = error_rms_relative.min(f64::MAX);
        let passed = self.passed();
        format!(
            "{{\"name\": {name:?}, \"shape\": {shape:?}, \"error_rms_relative\": {error:e}, \
             \"tolerance\": {tolerance:e}, \"passed\": {passed}}}"
        )
    }

    /// Whether the error is within the tolerance.
    pub fn passed(&self) -> bool {
        self.error_rms_relative <= self.tolerance
    }
}

/// Runs every kernel, with each of its variants, and compares it with f64.
///
/// # Errors
///
/// If a kernel could not be run; a wrong result is a row that has not [`passed`](Check::passed).
pub fn verify_all(cuda: &Cuda) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    elementwise::verify::<bf16>(cuda, &mut checks)?;
    elementwise::verify::<f32>(cuda, &mut checks)?;
    step::verify::<bf16>(cuda, &mut checks)?;
    step::verify::<f32>(cuda, &mut checks)?;
    images::verify::<bf16>(cuda, &mut checks)?;
    images::verify::<f32>(cuda, &mut checks)?;
    attention::verify(cuda, &mut checks)?;
    Ok(checks)
}
