//! What identifies the times a solver steps through, as plain data.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plan::check_num_steps;
use crate::{MAX_STEPS, PlanError};

/// The numbers that fix a step grid; a plan made on one grid means nothing on another.
///
/// ```text
/// u = linspace(0, 1 - last_step, num_steps) ++ [1],   t = u / (u + (1 - u) timeshift)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepGrid {
    /// Number of solver steps `N`; 250 in the published results.
    pub num_steps: usize,
    /// Length of the final step in flow time before shifting, in (0, 1]; 0.04 in the published results.
    pub last_step: f64,
    /// Respacing, above 0; 1 is evenly spaced, more puts more steps near noise.
    pub timeshift: f64,
}

impl StepGrid {
    /// Checks that such a grid exists.
    ///
    /// # Errors
    ///
    /// [`PlanError::NumSteps`] or [`PlanError::Field`] for a value outside its range.
    pub fn validate(&self) -> Result<(), PlanError> {
        check_num_steps(self.num_steps, MAX_STEPS)?;
        if !(self.last_step > 0.0 && self.last_step <= 1.0) {
            return Err(PlanError::Field {
                field: "last_step",
                expected: "in (0, 1]",
                got: self.last_step.to_string(),
            });
        }
        if !(self.timeshift > 0.0 && self.timeshift.is_finite()) {
            return Err(PlanError::Field {
                field: "timeshift",
                expected: "finite and above 0",
                got: self.timeshift.to_string(),
            });
        }
        Ok(())
    }

    /// Whether both name the same times, up to a relative 1e-9 in their numbers.
    pub fn matches(&self, other: &StepGrid) -> bool {
        self.num_steps == other.num_steps
            && nearly_equal(self.last_step, other.last_step)
            && nearly_equal(self.timeshift, other.timeshift)
    }
}

impl fmt::Display for StepGrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { num_steps, last_step, timeshift } = self;
        write!(f, "{num_steps} steps, last step {last_step}, time shift {timeshift}")
    }
}

/// Whether two settings are the same number, written or computed slightly differently.
pub(crate) fn nearly_equal(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: StepGrid = StepGrid { num_steps: 250, last_step: 0.04, timeshift: 1.0 };

    #[test]
    fn a_grid_matches_itself_and_rounding_but_nothing_else() {
        assert!(GRID.matches(&GRID));
        assert!(GRID.matches(&StepGrid { last_step: 1.0 - 0.96, ..GRID }));
        assert!(!GRID.matches(&StepGrid { num_steps: 249, ..GRID }));
        assert!(!GRID.matches(&StepGrid { last_step: 0.004, ..GRID }));
        assert!(!GRID.matches(&StepGrid { timeshift: 1.5, ..GRID }));
        assert!(!GRID.matches(&StepGrid { timeshift: f64::NAN, ..GRID }));
    }

    #[test]
    fn impossible_grids_are_refused() {
        assert!(GRID.validate().is_ok());
        assert!(matches!(
            StepGrid { num_steps: 0, ..GRID }.validate(),
            Err(PlanError::NumSteps { num_steps: 0, .. })
        ));
        for last_step in [0.0, -0.1, 1.1, f64::NAN] {
            let grid = StepGrid { last_step, ..GRID };
            assert!(matches!(grid.validate(), Err(PlanError::Field { field: "last_step", .. })));
        }
        for timeshift in [0.0, -1.0, f64::INFINITY, f64::NAN] {
            let grid = StepGrid { timeshift, ..GRID };
            assert!(matches!(grid.validate(), Err(PlanError::Field { field: "timeshift", .. })));
        }
    }
}
