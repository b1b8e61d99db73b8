//! Kinds of the steps of a run.

use ddt_flow::{CfgBatch, Guidance, TimeGrid};
use ddt_sharing::{PlanError, SharingPlan};

/// Kind of a step: the halves of the network that run, and on which batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StepKind {
    /// Both batches of guidance through encoder and decoder.
    Guided,
    /// The conditional batch through both.
    Class,
    /// Both batches through the encoder, because a later step that shares is guided; the conditional batch through
    /// the decoder.
    ClassLookAhead,
    /// Both batches through the decoder, with cached modulations.
    Shared,
    /// The conditional batch through the decoder, with cached modulations.
    SharedClass,
}

impl StepKind {
    /// All kinds there are.
    pub const ALL: [Self; 5] =
        [Self::Guided, Self::Class, Self::ClassLookAhead, Self::Shared, Self::SharedClass];

    /// Position in [`ALL`](Self::ALL).
    pub fn index(self) -> usize {
        self as usize
    }

    /// Rows through the encoder; `None` where it does not run.
    pub fn encode(self) -> Option<CfgBatch> {
        match self {
            Self::Guided | Self::ClassLookAhead => Some(CfgBatch::CondUncond),
            Self::Class => Some(CfgBatch::Cond),
            Self::Shared | Self::SharedClass => None,
        }
    }

    /// Rows through the decoder.
    pub fn decode(self) -> CfgBatch {
        match self {
            Self::Guided | Self::Shared => CfgBatch::CondUncond,
            Self::Class | Self::ClassLookAhead | Self::SharedClass => CfgBatch::Cond,
        }
    }

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guided => "guided",
            Self::Class => "class",
            Self::ClassLookAhead => "class, both encoded",
            Self::Shared => "shared",
            Self::SharedClass => "shared, class",
        }
    }
}

/// The kind of every step of a run with Euler's method.
///
/// A step is guided when its start is; it encodes where the plan recomputes (everywhere without one), and
/// then the rows without a class too if any step that combines its modulations is guided. This is what
/// [`RecomputeSchedule`](ddt_model::RecomputeSchedule) makes the CPU do.
///
/// # Errors
/// [`PlanError`] when the plan has another number of steps.
pub fn step_kinds(
    grid: &TimeGrid,
    guidance: &Guidance,
    plan: Option<&SharingPlan>,
) -> Result<Vec<StepKind>, PlanError> {
    let guided = guidance.guided_steps(grid);
    let Some(plan) = plan else {
        let kind = |&guided: &bool| if guided { StepKind::Guided } else { StepKind::Class };
        return Ok(guided.iter().map(kind).collect());
    };
    plan.check_num_steps(grid.num_steps())?;
    let kind = |step: usize| {
        let later = plan.users(step).any(|it| guided[it]);
        match (plan.is_recompute(step), guided[step]) {
            (true, true) => StepKind::Guided,
            (true, false) if later => StepKind::ClassLookAhead,
            (true, false) => StepKind::Class,
            (false, true) => StepKind::Shared,
            (false, false) => StepKind::SharedClass,
        }
    };
    Ok((0..grid.num_steps()).map(kind).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_run_is_guided_for_172_of_its_steps() {
        let grid = TimeGrid::new(250, Some(0.04), 1.0).unwrap();
        let guidance = Guidance::new(2.0, (0.3, 1.0)).unwrap();
        let plan = SharingPlan::uniform(250, 5).unwrap();
        let count = |plan: Option<&SharingPlan>| {
            let kinds = step_kinds(&grid, &guidance, plan).unwrap();
            StepKind::ALL.map(|kind| kinds.iter().filter(|&&it| it == kind).count())
        };
        assert_eq!(count(None), [172, 78, 0, 0, 0]);
        // Steps 75, 76, 77 share with 78, the first guided one.
        assert_eq!(count(Some(&plan)), [34, 15, 1, 138, 62]);
    }

    #[test]
    fn a_plan_for_other_steps_is_refused() {
        let grid = TimeGrid::new(6, None, 1.0).unwrap();
        let plan = SharingPlan::uniform(7, 2).unwrap();
        assert!(step_kinds(&grid, &Guidance::none(), Some(&plan)).is_err());
    }
}
