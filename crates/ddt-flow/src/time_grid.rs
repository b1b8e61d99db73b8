//! Time grids: the steps of a sampling run.

use serde::{Deserialize, Serialize};

use crate::error::{FlowError, Result};
use crate::model::Evaluation;

/// Strictly increasing times from `t = 0` (noise) to `t = 1` (data), in f64.
///
/// ```text
/// u = linspace(0, 1 - last_step, num_steps) ++ [1]
/// t = u / (u + (1 - u) timeshift)
/// ```
///
/// The published results use 250 steps, a last step of 0.04 and a timeshift of 1.
/// A timeshift above 1 spends more steps near noise (Fig. 4 of arXiv:2504.05741), one below 1 near data.
/// A grid that is made by [`until`](Self::until) ends before 1, so that latents keep a little noise, as those of DiT^DH
/// do in its published results.
///
/// Serialised as its parameters, which are validated when read back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parameters", into = "Parameters")]
pub struct TimeGrid {
    // Invariant: num_steps + 1 strictly increasing times, the first 0, the last at most 1.
    times: Vec<f64>,
    last_step: f64,
    timeshift: f64,
    // Where it ends before shifting.
    end: f64,
}

/// One step of a grid: from `t` to `t_next`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Position in the grid, from 0.
    pub index: usize,
    /// Time at the start.
    pub t: f64,
    /// Time at the end, above `t`.
    pub t_next: f64,
}

/// Serialised form of a grid.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    num_steps: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_step: Option<f64>,
    timeshift: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<f64>,
}

impl TimeGrid {
    /// More steps than any sampler needs, few enough to hold in memory.
    pub const MAX_STEPS: usize = 1 << 20;

    /// Grid of `num_steps` steps.
    ///
    /// `last_step` is the length of the final step before shifting; it defaults to `1 / num_steps`, and is
    /// always 1 for a single step.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] unless `num_steps` is in 1..=[`MAX_STEPS`](Self::MAX_STEPS), `last_step` is in
    /// (0, 1] and `timeshift` is finite and above 0; also if two times are equal in f64, as with a last step of
    /// 1 and several steps.
    pub fn new(num_steps: usize, last_step: Option<f64>, timeshift: f64) -> Result<Self> {
        check_steps(num_steps)?;
        if let Some(got) = last_step
            && !(got > 0.0 && got <= 1.0)
        {
            let expected = "finite and in (0, 1] (leave it out for 1 / number of steps)";
            return Err(FlowError::invalid("last step", expected, got));
        }
        check_timeshift(timeshift)?;

        let last_step = last_step.filter(|_| num_steps > 1).unwrap_or(1.0 / num_steps as f64);
        // With one step the divisor would be 0; its only start is 0 anyway.
        let intervals = num_steps.saturating_sub(1).max(1) as f64;
        let mut times: Vec<f64> = (0..num_steps)
            .map(|index| shift_time((1.0 - last_step) * index as f64 / intervals, timeshift))
            .collect();
        times.push(1.0);
        Self { times, last_step, timeshift, end: 1.0 }.increasing()
    }

    /// Grid of `num_steps` steps, equal before shifting, that ends before data.
    ///
    /// ```text
    /// u = linspace(0, end, num_steps + 1)
    /// t = u / (u + (1 - u) timeshift)
    /// ```
    ///
    /// The published results of DiT^DH (arXiv:2510.11690) use 49 steps until 0.999 and a timeshift of 6.93, or 13.86 at
    /// 512 px.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] unless `num_steps` and `timeshift` are as in [`new`](Self::new), and `end` is in (0, 1).
    pub fn until(num_steps: usize, end: f64, timeshift: f64) -> Result<Self> {
        check_steps(num_steps)?;
        if !(end > 0.0 && end < 1.0) {
            return Err(FlowError::invalid("end", "in (0, 1) (leave it out to end at data)", end));
        }
        check_timeshift(timeshift)?;
        let last_step = end / num_steps as f64;
        let times = (0..=num_steps)
            .map(|index| shift_time(end * index as f64 / num_steps as f64, timeshift))
            .collect();
        Self { times, last_step, timeshift, end }.increasing()
    }

    /// Refuses times that are equal in f64.
    fn increasing(self) -> Result<Self> {
        let Some(step) = self.times.windows(2).position(|pair| pair[0] >= pair[1]) else { return Ok(self) };
        let expected =
            "strictly increasing (use a last step inside (0, 1) and a timeshift nearer 1)".to_owned();
        let (steps, t) = (self.num_steps(), self.times[step]);
        let got = format!("step {step} of {steps} that starts and ends at t = {t}");
        Err(FlowError::Invalid { what: "times", expected, got })
    }

    /// The `num_steps + 1` times, from 0 to 1, or to the [end](Self::end).
    pub fn times(&self) -> &[f64] {
        &self.times
    }

    /// Number of steps, `N`.
    pub fn num_steps(&self) -> usize {
        self.times.len() - 1
    }

    /// Length of the final step before shifting.
    pub fn last_step(&self) -> f64 {
        self.last_step
    }

    /// End of the grid before shifting: 1, or less for one made by [`until`](Self::until).
    pub fn end(&self) -> f64 {
        self.end
    }

    /// Time shift; 1 is none.
    pub fn timeshift(&self) -> f64 {
        self.timeshift
    }

    /// The step at `index`, or `None` beyond the end.
    pub fn step(&self, index: usize) -> Option<Step> {
        let (&t, &t_next) = (self.times.get(index)?, self.times.get(index.checked_add(1)?)?);
        Some(Step { index, t, t_next })
    }

    /// All steps, from noise to data.
    pub fn steps(&self) -> impl ExactSizeIterator<Item = Step> + '_ {
        self.times.windows(2).enumerate().map(|(index, pair)| Step { index, t: pair[0], t_next: pair[1] })
    }
}

impl Step {
    /// Length of the step, `t_next - t`.
    pub fn dt(self) -> f64 {
        self.t_next - self.t
    }

    /// The evaluation at the start of the step.
    pub fn start(self) -> Evaluation {
        self.at(self.t)
    }

    /// An evaluation of this step at `t`, between its ends, both included.
    pub fn at(self, t: f64) -> Evaluation {
        Evaluation { step: self.index, step_t: self.t, t }
    }

    /// Whether the step ends at data, `t = 1`.
    pub fn is_last(self) -> bool {
        self.t_next >= 1.0
    }
}

/// Shifted time; 0 and 1 stay.
///
/// ```text
/// t / (t + (1 - t) timeshift)
/// ```
///
/// Above 1 moves times towards noise, below 1 towards data; 1 changes nothing.
pub fn shift_time(t: f64, timeshift: f64) -> f64 {
    t / (t + (1.0 - t) * timeshift)
}

/// Refuses a number of steps that no grid has.
fn check_steps(got: usize) -> Result<()> {
    if !(1..=TimeGrid::MAX_STEPS).contains(&got) {
        let expected = format!("in 1..={}", TimeGrid::MAX_STEPS);
        return Err(FlowError::invalid("number of steps", expected, got));
    }
    Ok(())
}

/// Refuses a time shift that is not finite and above 0.
pub(crate) fn check_timeshift(got: f64) -> Result<()> {
    if !(got.is_finite() && got > 0.0) {
        return Err(FlowError::invalid("timeshift", "finite and above 0 (1 means no shift)", got));
    }
    Ok(())
}

impl TryFrom<Parameters> for TimeGrid {
    type Error = FlowError;

    fn try_from(it: Parameters) -> Result<Self> {
        match (it.last_step, it.end) {
            (last_step, None) => Self::new(it.num_steps, last_step, it.timeshift),
            (None, Some(end)) => Self::until(it.num_steps, end, it.timeshift),
            (Some(last_step), Some(end)) => {
                let got = format!("last_step {last_step} and end {end}");
                Err(FlowError::invalid(
                    "grid",
                    "a last step, or an end before data, of which the steps are equal",
                    got,
                ))
            }
        }
    }
}

impl From<TimeGrid> for Parameters {
    fn from(grid: TimeGrid) -> Self {
        let cut = (grid.end < 1.0).then_some(grid.end);
        let last_step = if cut.is_none() { Some(grid.last_step) } else { None };
        Self { num_steps: grid.num_steps(), last_step, timeshift: grid.timeshift, end: cut }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(num_steps: usize, last_step: Option<f64>, timeshift: f64, expected: &[f64]) {
        let grid = TimeGrid::new(num_steps, last_step, timeshift).unwrap();
        assert_eq!(grid.times().len(), expected.len());
        for (got, want) in grid.times().iter().zip(expected) {
            assert!((got - want).abs() < 1e-15, "{:?} is not {expected:?}", grid.times());
        }
    }

    #[test]
    fn times_by_hand() {
        check(1, None, 1.0, &[0.0, 1.0]);
        check(1, Some(0.04), 3.0, &[0.0, 1.0]);
        check(4, None, 1.0, &[0.0, 0.25, 0.5, 0.75, 1.0]);
        check(4, Some(0.04), 1.0, &[0.0, 0.32, 0.64, 0.96, 1.0]);
        check(4, None, 2.0, &[0.0, 1.0 / 7.0, 1.0 / 3.0, 0.6, 1.0]);
        check(4, None, 0.5, &[0.0, 0.4, 2.0 / 3.0, 6.0 / 7.0, 1.0]);
    }

    #[test]
    fn a_grid_may_end_before_data() {
        // RAE's 50 points in its own time, where 1 is noise: shift r / (1 + (shift - 1) r), r from 1 down to 0.001.
        let shift = 48f64.sqrt();
        let grid = TimeGrid::until(49, 0.999, shift).unwrap();
        assert_eq!((grid.num_steps(), grid.times()[0]), (49, 0.0));
        for (i, t) in grid.times().iter().enumerate() {
            let r = 1.0 - 0.999 * i as f64 / 49.0;
            assert!((1.0 - t - shift * r / (1.0 + (shift - 1.0) * r)).abs() < 1e-14, "{i}");
        }
        assert!((1.0 - grid.times()[49] - 0.00689).abs() < 5e-6);
        assert!(!grid.step(48).unwrap().is_last());
        let json = serde_json::to_string(&grid).unwrap();
        assert!(
            json.starts_with(r#"{"num_steps":49,"timeshift":6.9"#) && json.ends_with(r#","end":0.999}"#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<TimeGrid>(&json).unwrap(), grid);
        for end in [0.0, 1.0, -1.0, f64::NAN] {
            assert!(TimeGrid::until(4, end, 1.0).unwrap_err().to_string().contains("end"), "{end}");
        }
        assert!(TimeGrid::until(0, 0.5, 1.0).is_err());
        let both = r#"{"num_steps":2,"last_step":0.5,"timeshift":1.0,"end":0.9}"#;
        assert!(serde_json::from_str::<TimeGrid>(both).unwrap_err().to_string().contains("grid"));
    }

    #[test]
    fn parameters_are_the_effective_ones() {
        let grid = TimeGrid::new(1, Some(0.04), 1.5).unwrap();
        assert_eq!((grid.num_steps(), grid.last_step(), grid.timeshift()), (1, 1.0, 1.5));
        assert_eq!(TimeGrid::new(8, None, 1.0).unwrap().last_step(), 0.125);
    }

    #[test]
    fn steps_tile_the_unit_interval() {
        let grid = TimeGrid::new(250, Some(0.04), 1.0).unwrap();
        let steps: Vec<Step> = grid.steps().collect();
        assert_eq!(steps.len(), 250);
        for (index, step) in steps.iter().enumerate() {
            assert_eq!(Some(*step), grid.step(index));
            assert_eq!(step.start(), Evaluation { step: index, step_t: step.t, t: step.t });
        }
        assert!((steps[249].dt() - 0.04).abs() < 1e-15);
        assert!((steps.iter().map(|it| it.dt()).sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!((grid.step(250), grid.step(usize::MAX)), (None, None));
        assert!(steps[249].is_last() && !steps[248].is_last());
        assert_eq!(steps[1].at(0.5), Evaluation { step: 1, step_t: steps[1].t, t: 0.5 });
    }

    #[test]
    fn bad_parameters_are_errors() {
        let check =
            |num_steps, last_step, timeshift, culprit| match TimeGrid::new(num_steps, last_step, timeshift) {
                Err(FlowError::Invalid { what, .. }) => assert_eq!(what, culprit),
                other => panic!("{other:?}"),
            };
        check(0, None, 1.0, "number of steps");
        check(usize::MAX, None, 1.0, "number of steps");
        for last_step in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
            check(4, Some(last_step), 1.0, "last step");
            check(1, Some(last_step), 1.0, "last step");
        }
        for timeshift in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            check(4, None, timeshift, "timeshift");
        }
        check(4, Some(1.0), 1.0, "times");
        check(4, Some(1e-300), 1.0, "times");
        assert!(TimeGrid::new(4, Some(1.0), 1.0).unwrap_err().to_string().contains("step 0 of 4"));
    }

    #[test]
    fn serialises_parameters_and_validates_them() {
        let grid = TimeGrid::new(12, Some(0.04), 1.5).unwrap();
        let json = serde_json::to_string(&grid).unwrap();
        assert_eq!(json, r#"{"num_steps":12,"last_step":0.04,"timeshift":1.5}"#);
        assert_eq!(serde_json::from_str::<TimeGrid>(&json).unwrap(), grid);
        let bad = r#"{"num_steps":0,"last_step":0.04,"timeshift":1.5}"#;
        assert!(serde_json::from_str::<TimeGrid>(bad).unwrap_err().to_string().contains("number of steps"));
        let unknown = r#"{"num_steps":2,"last_step":0.04,"timeshift":1.5,"steps":3}"#;
        assert!(serde_json::from_str::<TimeGrid>(unknown).is_err());
    }

    proptest! {
        #[test]
        fn times_increase_from_0_to_1(num_steps in 1usize..400, last in 0.001..0.999f64, shift in 0.05..20f64) {
            let grid = TimeGrid::new(num_steps, Some(last), shift).unwrap();
            let times = grid.times();
            prop_assert_eq!((times[0], times[num_steps]), (0.0, 1.0));
            prop_assert!(times.windows(2).all(|pair| pair[0] < pair[1]));
        }

        #[test]
        fn shifting_back_undoes_a_shift(t in 0.0..=1.0f64, shift in 0.05..20f64) {
            prop_assert!((shift_time(shift_time(t, shift), 1.0 / shift) - t).abs() < 1e-12);
        }

        #[test]
        fn any_parameters_give_a_grid_or_an_error(steps in 0usize..50, last in any::<f64>(), shift in any::<f64>()) {
            if let Ok(grid) = TimeGrid::new(steps, Some(last), shift) {
                prop_assert!(grid.times().windows(2).all(|pair| pair[0] < pair[1]));
            }
        }
    }
}
