//! Kinds of the steps of a run.

use ddt_flow::{CfgBatch, Guidance, TimeGrid};
use ddt_sharing::{ForecastOrder, PlanError, SharingPlan};

/// Kind of a step: the halves of the network that run, and on which batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
/// then the rows without a class too if any step up to the next recompute is guided. This is what
/// [`RecomputeSchedule`](ddt_model::RecomputeSchedule) makes the CPU do.
///
/// # Errors
/// [`PlanError`] when the plan has another number of steps, or forecasts of a higher order than reuse.
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
    plan.check_order(ForecastOrder::Reuse)?;
    let kind = |step: usize| {
        let later = guided[step..plan.next_recompute(step)].contains(&true);
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
    use std::{cell::RefCell, ops::ControlFlow};

    use candle_core::{DType, Device, Result, Tensor};
    use ddt_flow::{Decoupled, EULER, Guided, solve};
    use ddt_model::{RecomputeSchedule, Shared, SharedState};

    use super::*;

    /// Notes what the CPU's sampler asks its network for.
    #[derive(Default)]
    struct Recorder {
        encoded: RefCell<Option<CfgBatch>>,
        steps: RefCell<Vec<(Option<CfgBatch>, CfgBatch)>>,
    }

    impl Decoupled for &Recorder {
        type Cached = ();

        fn encode(&self, _: &Tensor, _: f64, rows: CfgBatch) -> Result<()> {
            assert_eq!(self.encoded.replace(Some(rows)), None);
            Ok(())
        }

        fn decode(&self, x_t: &Tensor, _: &[(&(), f64)], rows: CfgBatch) -> Result<Tensor> {
            self.steps.borrow_mut().push((self.encoded.take(), rows));
            match rows {
                CfgBatch::Cond => Ok(x_t.clone()),
                CfgBatch::CondUncond => Tensor::cat(&[x_t, x_t], 0),
            }
        }
    }

    #[test]
    fn steps_are_those_of_the_sampler_on_the_cpu() {
        let noise = Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap();
        let mut kinds_seen = [false; 5];
        for (steps, shift) in [(1, 1.0), (7, 1.0), (24, 1.7), (250, 1.0)] {
            let grid = TimeGrid::new(steps, (steps > 1).then_some(0.04), shift).unwrap();
            for (scale, interval) in
                [(2.0, (0.3, 1.0)), (1.0, (0.0, 1.0)), (3.0, (0.1, 0.6)), (2.0, (-1.0, 2.0))]
            {
                let guidance = Guidance::new(scale, interval).unwrap();
                let plans = [None, Some(1), Some(3), Some(5), Some(9)];
                for plan in plans.map(|every| every.map(|it| SharingPlan::uniform(steps, it).unwrap())) {
                    let recorder = Recorder::default();
                    let schedule =
                        plan.as_ref().map(|it| RecomputeSchedule::new(it, &grid, &guidance).unwrap());
                    let model = Guided { model: Shared::new(&recorder, schedule), guidance };
                    let mut state = SharedState::default();
                    solve(&model, &EULER, &grid, &noise, &mut state, &mut |_| ControlFlow::Continue(()))
                        .unwrap();
                    let kinds = step_kinds(&grid, &guidance, plan.as_ref()).unwrap();
                    let ours: Vec<_> = kinds.iter().map(|it| (it.encode(), it.decode())).collect();
                    assert_eq!(ours, recorder.steps.into_inner());
                    kinds.iter().for_each(|it| kinds_seen[it.index()] = true);
                }
            }
        }
        assert_eq!(kinds_seen, [true; 5]);
    }

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
    fn a_plan_for_other_steps_or_with_forecasts_is_refused() {
        let grid = TimeGrid::new(6, None, 1.0).unwrap();
        for plan in [
            SharingPlan::uniform(7, 2).unwrap(),
            SharingPlan::uniform(6, 2).unwrap().with_order(ForecastOrder::Linear),
        ] {
            assert!(step_kinds(&grid, &Guidance::none(), Some(&plan)).is_err());
        }
    }
}
