//! What a similarity was measured on, and so what a plan made from it is good for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::step_grid::nearly_equal;
use crate::{PlanError, StepGrid};

/// The model and the sampler settings that a plan belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFor {
    /// Name or hash of the model's weights, chosen by the caller and compared as text; not empty.
    pub model: String,
    /// The times stepped through.
    pub grid: StepGrid,
    /// Classifier-free guidance.
    pub guidance: PlanGuidance,
    /// Name of the solver, compared as text where both sides give one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solver: Option<String>,
}

/// Classifier-free guidance, as far as a plan depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanGuidance {
    /// Guidance scale (unitless); 1 is none, 2.0 in the published results at 256 px.
    pub scale: f64,
    /// Flow times between which guidance acts; (0.3, 1) in the published results.
    pub interval: (f64, f64),
}

impl PlanFor {
    /// Checks that the settings can be some sampler's.
    ///
    /// # Errors
    ///
    /// [`PlanError::Field`] for an empty model name or a non-finite number; errors of
    /// [`StepGrid::validate`].
    pub fn validate(&self) -> Result<(), PlanError> {
        if self.model.is_empty() {
            return Err(PlanError::Field { field: "model", expected: "a name", got: "\"\"".to_owned() });
        }
        self.grid.validate()?;
        let PlanGuidance { scale, interval: (lo, hi) } = self.guidance;
        if ![scale, lo, hi].iter().all(|it| it.is_finite()) {
            return Err(PlanError::Field {
                field: "guidance",
                expected: "finite",
                got: self.guidance.to_string(),
            });
        }
        Ok(())
    }

    /// Refuses to serve a sampler with other settings; numbers may differ by a relative 1e-9.
    ///
    /// # Errors
    ///
    /// [`PlanError::WrongModel`], [`PlanError::WrongGrid`], [`PlanError::WrongGuidance`] or
    /// [`PlanError::WrongSolver`], naming both sides of the first difference.
    pub fn check(&self, wanted: &PlanFor) -> Result<(), PlanError> {
        if self.model != wanted.model {
            return Err(PlanError::WrongModel { plan: self.model.clone(), wanted: wanted.model.clone() });
        }
        if !self.grid.matches(&wanted.grid) {
            return Err(PlanError::WrongGrid { plan: self.grid, wanted: wanted.grid });
        }
        if !self.guidance.matches(&wanted.guidance) {
            return Err(PlanError::WrongGuidance { plan: self.guidance, wanted: wanted.guidance });
        }
        match (&self.solver, &wanted.solver) {
            (Some(plan), Some(wanted)) if plan != wanted => {
                Err(PlanError::WrongSolver { plan: plan.clone(), wanted: wanted.clone() })
            }
            _ => Ok(()),
        }
    }
}

impl PlanGuidance {
    fn matches(&self, other: &PlanGuidance) -> bool {
        nearly_equal(self.scale, other.scale)
            && nearly_equal(self.interval.0, other.interval.0)
            && nearly_equal(self.interval.1, other.interval.1)
    }
}

impl fmt::Display for PlanGuidance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scale, interval: (lo, hi) } = self;
        write!(f, "guidance {scale} between t = {lo} and {hi}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> PlanFor {
        PlanFor {
            model: "ddt-xl-2-22en6de".to_owned(),
            grid: StepGrid { num_steps: 250, last_step: 0.04, timeshift: 1.0 },
            guidance: PlanGuidance { scale: 2.0, interval: (0.3, 1.0) },
            solver: Some("euler".to_owned()),
        }
    }

    #[test]
    fn every_difference_is_named_from_both_sides() {
        let plan = published();
        assert!(plan.check(&published()).is_ok());
        assert!(plan.check(&PlanFor { solver: None, ..published() }).is_ok());
        let other_interval = PlanGuidance { scale: 2.0, interval: (0.2, 1.0) };
        for (wanted, ours, theirs) in [
            (PlanFor { model: "ddt-b-2".to_owned(), ..published() }, "ddt-xl-2-22en6de", "ddt-b-2"),
            (
                PlanFor { grid: StepGrid { num_steps: 50, ..plan.grid }, ..published() },
                "250 steps",
                "50 steps",
            ),
            (PlanFor { guidance: other_interval, ..published() }, "t = 0.3 and 1", "t = 0.2 and 1"),
            (PlanFor { solver: Some("adams".to_owned()), ..published() }, "\"euler\"", "\"adams\""),
        ] {
            let message = plan.check(&wanted).unwrap_err().to_string();
            assert!(message.contains(ours) && message.contains(theirs), "{message}");
        }
    }

    #[test]
    fn impossible_settings_are_refused() {
        assert!(published().validate().is_ok());
        let nameless = PlanFor { model: String::new(), ..published() };
        assert!(matches!(nameless.validate(), Err(PlanError::Field { field: "model", .. })));
        let infinite = PlanGuidance { scale: f64::INFINITY, interval: (0.0, 1.0) };
        let infinite = PlanFor { guidance: infinite, ..published() };
        assert!(matches!(infinite.validate(), Err(PlanError::Field { field: "guidance", .. })));
    }
}
