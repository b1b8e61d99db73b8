//! Sharing plans: the steps at which the condition encoder runs.
//!
//! Eq. (6) of arXiv:2504.05741: at a recompute step the self-condition is computed, at every other step the
//! latest one is used again.

use serde::{Deserialize, Serialize};

use crate::{PlanError, StepGrid};

/// Most sampling steps a plan can have; far above any sampler's, so that no input can exhaust memory.
pub const MAX_STEPS: usize = 65_536;

/// Steps at which the condition encoder runs; every other step reuses the latest self-condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedPlan")]
pub struct SharingPlan {
    num_steps: usize,
    // Invariant: strictly increasing, starts with 0, all below num_steps.
    recompute_steps: Vec<usize>,
    // Invariant: valid, and has num_steps steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    grid: Option<StepGrid>,
}

impl SharingPlan {
    /// Makes the plan that recomputes at `recompute_steps`, out of `num_steps` sampling steps.
    ///
    /// # Errors
    ///
    /// [`PlanError::NumSteps`], [`PlanError::FirstStep`], [`PlanError::NotIncreasing`] or
    /// [`PlanError::StepOutOfRange`] unless the steps are `0 = a_1 < a_2 < ... < num_steps`.
    pub fn new(recompute_steps: Vec<usize>, num_steps: usize) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_STEPS)?;
        if recompute_steps.first() != Some(&0) {
            return Err(PlanError::FirstStep { first: recompute_steps.first().copied() });
        }
        if let Some(pair) = recompute_steps.windows(2).find(|pair| pair[1] <= pair[0]) {
            return Err(PlanError::NotIncreasing { previous: pair[0], step: pair[1] });
        }
        match recompute_steps.last() {
            Some(&step) if step >= num_steps => Err(PlanError::StepOutOfRange { step, num_steps }),
            _ => Ok(Self { num_steps, recompute_steps, grid: None }),
        }
    }

    /// Makes the plan that shares nothing.
    ///
    /// # Errors
    ///
    /// [`PlanError::NumSteps`] unless `num_steps` is in `1..=`[`MAX_STEPS`].
    pub fn every_step(num_steps: usize) -> Result<Self, PlanError> {
        Self::uniform(num_steps, 1)
    }

    /// Makes the plan that recomputes at steps `0, every, 2 every, ...`.
    ///
    /// ```text
    /// K = ceil(N / every)
    /// ```
    ///
    /// # Errors
    ///
    /// [`PlanError::ZeroEvery`], or [`PlanError::NumSteps`] unless `num_steps` is in `1..=`[`MAX_STEPS`].
    pub fn uniform(num_steps: usize, every: usize) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_STEPS)?;
        if every == 0 {
            return Err(PlanError::ZeroEvery);
        }
        Self::new((0..num_steps).step_by(every).collect(), num_steps)
    }

    /// Makes the plan of exactly `num_recompute` recomputes whose segments differ by at most one step.
    ///
    /// ```text
    /// a_k = floor(k N / K),   k = 0 ... K - 1
    /// ```
    ///
    /// # Errors
    ///
    /// [`PlanError::NumSteps`] as for [`SharingPlan::uniform`]; [`PlanError::Budget`] unless
    /// `1 <= num_recompute <= num_steps`.
    pub fn uniform_budget(num_steps: usize, num_recompute: usize) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_STEPS)?;
        check_budget(num_recompute, num_steps)?;
        // At most 2^16 * 2^16: u64 keeps the product exact on every platform.
        let nth = |k: usize| (k as u64 * num_steps as u64 / num_recompute as u64) as usize;
        Self::new((0..num_recompute).map(nth).collect(), num_steps)
    }

    /// Names the step grid that the plan was made on.
    ///
    /// # Errors
    ///
    /// [`PlanError::StepCount`] if the grid has another number of steps; errors of [`StepGrid::validate`].
    pub fn on_grid(self, grid: StepGrid) -> Result<Self, PlanError> {
        grid.validate()?;
        check_step_count("the step grid", self.num_steps, grid.num_steps)?;
        Ok(Self { grid: Some(grid), ..self })
    }

    /// Refuses any grid but the plan's own.
    ///
    /// # Errors
    ///
    /// [`PlanError::WrongGrid`] naming both; [`PlanError::NoGrid`] if the plan names none.
    pub fn check_grid(&self, wanted: &StepGrid) -> Result<(), PlanError> {
        match self.grid {
            None => Err(PlanError::NoGrid { wanted: *wanted }),
            Some(plan) if !plan.matches(wanted) => Err(PlanError::WrongGrid { plan, wanted: *wanted }),
            Some(_) => Ok(()),
        }
    }

    /// Number of sampling steps `N`.
    pub fn num_steps(&self) -> usize {
        self.num_steps
    }

    /// Steps at which the encoder runs, strictly increasing from 0.
    pub fn recompute_steps(&self) -> &[usize] {
        &self.recompute_steps
    }

    /// Number of encoder runs `K`.
    pub fn num_recompute(&self) -> usize {
        self.recompute_steps.len()
    }

    /// Fraction of steps that skip the encoder, `1 - K/N`.
    pub fn sharing_ratio(&self) -> f64 {
        1.0 - self.num_recompute() as f64 / self.num_steps as f64
    }

    /// The step grid that the plan was made on, if it names one.
    pub fn grid(&self) -> Option<&StepGrid> {
        self.grid.as_ref()
    }

    /// Whether the encoder runs at `step`.
    pub fn is_recompute(&self, step: usize) -> bool {
        self.recompute_steps.binary_search(&step).is_ok()
    }

    /// First recompute step after `step`, or `N` if there is none.
    ///
    /// What is computed at a recompute step serves until (not including) this one.
    pub fn next_recompute(&self, step: usize) -> usize {
        let after = self.recompute_steps.partition_point(|&it| it <= step);
        self.recompute_steps.get(after).copied().unwrap_or(self.num_steps)
    }

    /// The stretches of steps that share one self-condition, as `(first, end)` with `end` excluded.
    pub fn segments(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let ends = self.recompute_steps.iter().copied().skip(1).chain([self.num_steps]);
        self.recompute_steps.iter().copied().zip(ends)
    }
}

/// Number of recomputes `K` whose sharing ratio comes nearest to `ratio` without being above it.
///
/// ```text
/// K = ceil((1 - ratio) N), but at least 1 and at most N
/// ```
///
/// A ratio outside [0, 1) thus gives the nearest budget, and one that is not a number gives 1.
pub fn budget_for_ratio(num_steps: usize, ratio: f64) -> usize {
    // Rounding in the product must not add a run: (1 - 0.7) 10 is a little above 3.
    let num_recompute = ((1.0 - ratio) * num_steps as f64 - 1e-9).ceil() as usize;
    num_recompute.min(num_steps).max(1)
}

/// What a plan looks like before its invariants are known to hold.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedPlan {
    num_steps: usize,
    recompute_steps: Vec<usize>,
    #[serde(default)]
    grid: Option<StepGrid>,
}

impl TryFrom<UncheckedPlan> for SharingPlan {
    type Error = PlanError;

    fn try_from(unchecked: UncheckedPlan) -> Result<Self, PlanError> {
        let plan = Self::new(unchecked.recompute_steps, unchecked.num_steps)?;
        match unchecked.grid {
            Some(grid) => plan.on_grid(grid),
            None => Ok(plan),
        }
    }
}

pub(crate) fn check_num_steps(num_steps: usize, max: usize) -> Result<(), PlanError> {
    if (1..=max).contains(&num_steps) { Ok(()) } else { Err(PlanError::NumSteps { num_steps, max }) }
}

pub(crate) fn check_budget(num_recompute: usize, max: usize) -> Result<(), PlanError> {
    if (1..=max).contains(&num_recompute) { Ok(()) } else { Err(PlanError::Budget { num_recompute, max }) }
}

pub(crate) fn check_step_count(what: &'static str, expected: usize, got: usize) -> Result<(), PlanError> {
    if got == expected { Ok(()) } else { Err(PlanError::StepCount { what, expected, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_plans_take_every_rth_step() {
        for (num_steps, every) in [(250, 5), (250, 4), (10, 3), (7, 7), (7, 8), (1, 1)] {
            let plan = SharingPlan::uniform(num_steps, every).unwrap();
            assert_eq!(plan.num_recompute(), num_steps.div_ceil(every));
            assert!((0..num_steps).all(|step| plan.is_recompute(step) == (step % every == 0)));
        }
        assert!((SharingPlan::uniform(250, 5).unwrap().sharing_ratio() - 0.8).abs() < 1e-15);
        assert_eq!(SharingPlan::every_step(9).unwrap().sharing_ratio(), 0.0);
        assert!(matches!(SharingPlan::uniform(10, 0), Err(PlanError::ZeroEvery)));
        assert!(matches!(SharingPlan::every_step(usize::MAX), Err(PlanError::NumSteps { .. })));
        assert!(matches!(SharingPlan::every_step(0), Err(PlanError::NumSteps { .. })));
    }

    #[test]
    fn uniform_budgets_are_exact_and_even() {
        for num_steps in 1..40 {
            for num_recompute in 1..=num_steps {
                let plan = SharingPlan::uniform_budget(num_steps, num_recompute).unwrap();
                assert_eq!(plan.num_recompute(), num_recompute);
                let lengths: Vec<_> = plan.segments().map(|(a, b)| b - a).collect();
                assert_eq!(lengths.iter().sum::<usize>(), num_steps);
                assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 1);
            }
        }
        assert!(matches!(
            SharingPlan::uniform_budget(5, 6),
            Err(PlanError::Budget { num_recompute: 6, max: 5 })
        ));
        assert!(matches!(SharingPlan::uniform_budget(5, 0), Err(PlanError::Budget { .. })));
    }

    #[test]
    fn ratios_become_budgets() {
        for (num_steps, ratio, expected) in [
            (250, 0.8, 50),
            (250, 0.87, 33),
            (10, 0.7, 3),
            (10, 0.75, 3),
            (10, 0.0, 10),
            (10, 0.999, 1),
            (10, 1.5, 1),
            (10, -1.0, 10),
            (10, f64::NAN, 1),
            (0, 0.5, 1),
        ] {
            assert_eq!(budget_for_ratio(num_steps, ratio), expected, "{ratio} of {num_steps}");
        }
        for num_steps in 1..300 {
            for num_recompute in 1..=num_steps {
                let plan = SharingPlan::uniform_budget(num_steps, num_recompute).unwrap();
                assert_eq!(budget_for_ratio(num_steps, plan.sharing_ratio()), num_recompute);
            }
        }
    }

    #[test]
    fn wrong_steps_are_refused() {
        assert!(matches!(SharingPlan::new(vec![], 3), Err(PlanError::FirstStep { first: None })));
        assert!(matches!(SharingPlan::new(vec![1], 3), Err(PlanError::FirstStep { first: Some(1) })));
        assert!(matches!(
            SharingPlan::new(vec![0, 2, 2], 3),
            Err(PlanError::NotIncreasing { previous: 2, step: 2 })
        ));
        assert!(matches!(
            SharingPlan::new(vec![0, 3], 3),
            Err(PlanError::StepOutOfRange { step: 3, num_steps: 3 })
        ));
    }

    #[test]
    fn a_plan_knows_how_long_a_state_lasts() {
        let plan = SharingPlan::new(vec![0, 2, 3], 6).unwrap();
        let next: Vec<_> = (0..8).map(|step| plan.next_recompute(step)).collect();
        assert_eq!(next, [2, 2, 3, 6, 6, 6, 6, 6]);
        assert_eq!(plan.segments().collect::<Vec<_>>(), [(0, 2), (2, 3), (3, 6)]);
        assert!(!plan.is_recompute(6));
    }

    #[test]
    fn a_plan_refuses_another_grid() {
        let grid = StepGrid { num_steps: 6, last_step: 0.1, timeshift: 1.0 };
        let plan = SharingPlan::every_step(6).unwrap();
        assert!(matches!(plan.check_grid(&grid), Err(PlanError::NoGrid { .. })));
        let longer = StepGrid { num_steps: 7, ..grid };
        assert!(matches!(plan.clone().on_grid(longer), Err(PlanError::StepCount { got: 7, .. })));
        let plan = plan.on_grid(grid).unwrap();
        assert!(plan.check_grid(&grid).is_ok());
        let error = plan.check_grid(&StepGrid { timeshift: 2.0, ..grid }).unwrap_err().to_string();
        assert!(error.contains("time shift 1,") && error.contains("time shift 2;"), "{error}");
    }

    #[test]
    fn json_keeps_the_invariants() {
        let grid = StepGrid { num_steps: 6, last_step: 0.1, timeshift: 1.5 };
        for plan in
            [SharingPlan::uniform(6, 2).unwrap(), SharingPlan::every_step(6).unwrap().on_grid(grid).unwrap()]
        {
            let json = serde_json::to_string(&plan).unwrap();
            assert_eq!(serde_json::from_str::<SharingPlan>(&json).unwrap(), plan);
        }
        for json in [
            r#"{"num_steps": 3, "recompute_steps": [1]}"#,
            r#"{"num_steps": 3, "recompute_steps": [0], "colour": 1}"#,
            r#"{"num_steps": 3, "recompute_steps": [0],
                "grid": {"num_steps": 4, "last_step": 0.1, "timeshift": 1.0}}"#,
        ] {
            assert!(serde_json::from_str::<SharingPlan>(json).is_err(), "{json}");
        }
    }
}
