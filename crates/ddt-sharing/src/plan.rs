//! Sharing plans: the steps at which the condition encoder runs, and how the other steps get by.
//!
//! Eq. (6) of arXiv:2504.05741: a recompute step computes the self-condition, every other step reuses the
//! latest one. A plan of a higher [`ForecastOrder`] extrapolates the latest ones instead.

use std::{fmt, str::FromStr};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::error::PlanError;

/// Most sampling steps a plan can have; far above any sampler's, so that no input can exhaust memory.
pub const MAX_STEPS: usize = 65_536;

/// Order of the polynomial in time that forecasts the self-condition between recomputes.
///
/// Order `m` uses the last `min(m + 1, available)` recomputed self-conditions, with the weights of
/// [`forecast_weights`](crate::forecast_weights). The first segment of a plan has only one, so it always
/// reuses. Serialised as the number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "usize", into = "usize")]
pub enum ForecastOrder {
    /// Order 0: the latest self-condition is reused, as in the paper.
    #[default]
    Reuse,
    /// Order 1: the line through the last two.
    Linear,
    /// Order 2: the parabola through the last three.
    Quadratic,
}

impl ForecastOrder {
    /// Most recomputed self-conditions that a forecast combines: the order plus one.
    pub fn points(self) -> usize {
        usize::from(self) + 1
    }
}

impl TryFrom<usize> for ForecastOrder {
    type Error = PlanError;

    fn try_from(order: usize) -> Result<Self, PlanError> {
        match order {
            0 => Ok(Self::Reuse),
            1 => Ok(Self::Linear),
            2 => Ok(Self::Quadratic),
            _ => Err(PlanError::invalid("the order of a forecast", "0 (reuse), 1 or 2", order)),
        }
    }
}

impl FromStr for ForecastOrder {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let order: Option<usize> = text.trim().parse().ok();
        order
            .and_then(|it| it.try_into().ok())
            .ok_or_else(|| PlanError::invalid("the order of a forecast", "0 (reuse), 1 or 2", text))
    }
}

impl From<ForecastOrder> for usize {
    fn from(order: ForecastOrder) -> Self {
        order as usize
    }
}

impl fmt::Display for ForecastOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        usize::from(*self).fmt(f)
    }
}

/// Steps at which the condition encoder runs, and the order in which the others forecast its output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedPlan")]
pub struct SharingPlan {
    num_steps: usize,
    // Invariant: strictly increasing, starts with 0, all below num_steps.
    recompute_steps: Vec<usize>,
    #[serde(skip_serializing_if = "is_reuse")]
    order: ForecastOrder,
}

fn is_reuse(order: &ForecastOrder) -> bool {
    *order == ForecastOrder::Reuse
}

impl SharingPlan {
    /// The plan that recomputes at `recompute_steps`, out of `num_steps` sampling steps, and reuses between.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless the steps are `0 = a_1 < a_2 < ... < num_steps`, and `num_steps` is in
    /// `1..=`[`MAX_STEPS`].
    pub fn new(recompute_steps: Vec<usize>, num_steps: usize) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_STEPS)?;
        if recompute_steps.first() != Some(&0) {
            let got = recompute_steps.first().map_or("none".to_owned(), usize::to_string);
            return Err(PlanError::invalid("the first recompute step", "0", got));
        }
        if let Some(pair) = recompute_steps.windows(2).find(|pair| pair[1] <= pair[0]) {
            let got = format!("{} after {}", pair[1], pair[0]);
            return Err(PlanError::invalid("recompute steps", "strictly increasing", got));
        }
        match recompute_steps.last() {
            Some(&last) if last >= num_steps => {
                Err(PlanError::invalid("recompute steps", format!("below the {num_steps} steps"), last))
            }
            _ => Ok(Self { num_steps, recompute_steps, order: ForecastOrder::Reuse }),
        }
    }

    /// The plan that recomputes at every step.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless `num_steps` is in `1..=`[`MAX_STEPS`].
    pub fn every_step(num_steps: usize) -> Result<Self, PlanError> {
        Self::uniform(num_steps, 1)
    }

    /// The plan that recomputes at steps `0, every, 2 every, ...`.
    ///
    /// ```text
    /// K = ceil(N / every)
    /// ```
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless `every` is above 0 and `num_steps` is in `1..=`[`MAX_STEPS`].
    pub fn uniform(num_steps: usize, every: usize) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_STEPS)?;
        if every == 0 {
            return Err(PlanError::invalid("the interval of a uniform plan", "at least 1", every));
        }
        Self::new((0..num_steps).step_by(every).collect(), num_steps)
    }

    /// The plan of exactly `num_recompute` recomputes whose segments differ by at most one step.
    ///
    /// ```text
    /// a_k = floor(k N / K),   k = 0 ... K - 1
    /// ```
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless `1 <= num_recompute <= num_steps <= `[`MAX_STEPS`].
    pub fn uniform_budget(num_steps: usize, num_recompute: usize) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_STEPS)?;
        check_budget(num_recompute, 1, num_steps)?;
        // At most 2^16 * 2^16: u64 keeps the product exact on every platform.
        let nth = |k: usize| (k as u64 * num_steps as u64 / num_recompute as u64) as usize;
        Self::new((0..num_recompute).map(nth).collect(), num_steps)
    }

    /// The same steps, with forecasts of another order between them.
    pub fn with_order(self, order: ForecastOrder) -> Self {
        Self { order, ..self }
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

    /// Order of the forecasts between recomputes.
    pub fn order(&self) -> ForecastOrder {
        self.order
    }

    /// Fraction of steps that skip the encoder, `1 - K/N`.
    pub fn sharing_ratio(&self) -> f64 {
        1.0 - self.num_recompute() as f64 / self.num_steps as f64
    }

    /// Refuses a sampler with another number of steps.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] naming both.
    pub fn check_num_steps(&self, wanted: usize) -> Result<(), PlanError> {
        PlanError::check_steps("the sharing plan", wanted, self.num_steps)
    }

    /// Whether the encoder runs at `step`.
    pub fn is_recompute(&self, step: usize) -> bool {
        self.recompute_steps.binary_search(&step).is_ok()
    }

    /// Stretches of steps from one recompute to the next, as `(first, end)` with `end` excluded.
    pub fn segments(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let ends = self.recompute_steps.iter().copied().skip(1).chain([self.num_steps]);
        self.recompute_steps.iter().copied().zip(ends)
    }

    /// The recompute steps whose self-conditions are combined at `step`, oldest first: the last ones up to
    /// `step`, as many as the order asks for and there are. A recompute step combines only its own.
    pub fn sources(&self, step: usize) -> &[usize] {
        let end = self.recompute_steps.partition_point(|&it| it <= step);
        let points = if self.is_recompute(step) { 1 } else { self.order.points() };
        &self.recompute_steps[end.saturating_sub(points)..end]
    }

    /// The steps that combine the self-condition of the recompute step `step`, itself first; none unless it is
    /// one.
    pub fn users(&self, step: usize) -> impl Iterator<Item = usize> + '_ {
        let first = self.recompute_steps.binary_search(&step).ok();
        let end = first.map_or(step, |first| {
            let end = self.recompute_steps.get(first + self.order.points());
            end.copied().unwrap_or(self.num_steps)
        });
        (step..end).filter(move |&it| it == step || !self.is_recompute(it))
    }
}

/// Number of recomputes `K` whose sharing ratio comes nearest to `ratio` without being above it.
///
/// ```text
/// K = ceil((1 - ratio) N), but at least 1 and at most N
/// ```
///
/// A ratio outside [0, 1) thus gives the nearest budget, and NaN gives 1.
pub fn budget_for_ratio(num_steps: usize, ratio: f64) -> usize {
    // Rounding in the product must not add a run: (1 - 0.7) 10 is a little above 3.
    let num_recompute = ((1.0 - ratio) * num_steps as f64 - 1e-9).ceil() as usize;
    num_recompute.min(num_steps).max(1)
}

/// Serialised form of a plan, whose invariants may not hold.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedPlan {
    num_steps: usize,
    recompute_steps: Vec<usize>,
    #[serde(default)]
    order: ForecastOrder,
    // Plan files used to repeat the time grid of `made_for` here.
    #[serde(default, rename = "grid")]
    _grid: IgnoredAny,
}

impl TryFrom<UncheckedPlan> for SharingPlan {
    type Error = PlanError;

    fn try_from(unchecked: UncheckedPlan) -> Result<Self, PlanError> {
        let plan = Self::new(unchecked.recompute_steps, unchecked.num_steps)?;
        Ok(plan.with_order(unchecked.order))
    }
}

pub(crate) fn check_num_steps(num_steps: usize, max: usize) -> Result<(), PlanError> {
    if (1..=max).contains(&num_steps) {
        return Ok(());
    }
    Err(PlanError::invalid("the number of steps", format!("in 1..={max}"), num_steps))
}

pub(crate) fn check_budget(num_recompute: usize, min: usize, max: usize) -> Result<(), PlanError> {
    if (min..=max).contains(&num_recompute) {
        return Ok(());
    }
    Err(PlanError::invalid("the number of recomputes", format!("in {min}..={max}"), num_recompute))
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
    fn impossible_plans_are_refused_with_the_culprit() {
        let cases = [
            (SharingPlan::new(vec![], 3), "first recompute step must be 0, got none"),
            (SharingPlan::new(vec![1], 3), "first recompute step must be 0, got 1"),
            (SharingPlan::new(vec![0, 2, 2], 3), "strictly increasing, got 2 after 2"),
            (SharingPlan::new(vec![0, 3], 3), "below the 3 steps, got 3"),
            (SharingPlan::uniform(10, 0), "interval of a uniform plan"),
            (SharingPlan::every_step(usize::MAX), "number of steps must be in 1..=65536"),
            (SharingPlan::every_step(0), "number of steps"),
            (SharingPlan::uniform_budget(5, 6), "number of recomputes must be in 1..=5, got 6"),
            (SharingPlan::uniform_budget(5, 0), "number of recomputes"),
        ];
        for (plan, expected) in cases {
            let message = plan.unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_plan_knows_how_long_a_state_lasts() {
        let plan = SharingPlan::new(vec![0, 2, 3], 6).unwrap();
        assert_eq!(plan.segments().collect::<Vec<_>>(), [(0, 2), (2, 3), (3, 6)]);
        assert!(!plan.is_recompute(6));
        plan.check_num_steps(6).unwrap();
        assert!(plan.check_num_steps(7).unwrap_err().to_string().contains("of 7 steps, got 6"));
    }

    #[test]
    fn forecasts_combine_the_last_recomputes_that_there_are() {
        let plan = |order| SharingPlan::new(vec![0, 2, 3, 5], 8).unwrap().with_order(order);
        let sources =
            |order: ForecastOrder| (0..8).map(|it| plan(order).sources(it).to_vec()).collect::<Vec<_>>();
        let reuse: [&[usize]; 8] = [&[0], &[0], &[2], &[3], &[3], &[5], &[5], &[5]];
        assert_eq!(sources(ForecastOrder::Reuse), reuse);
        let linear: [&[usize]; 8] = [&[0], &[0], &[2], &[3], &[2, 3], &[5], &[3, 5], &[3, 5]];
        assert_eq!(sources(ForecastOrder::Linear), linear);
        let quadratic: [&[usize]; 8] = [&[0], &[0], &[2], &[3], &[0, 2, 3], &[5], &[2, 3, 5], &[2, 3, 5]];
        assert_eq!(sources(ForecastOrder::Quadratic), quadratic);
        for order in [ForecastOrder::Reuse, ForecastOrder::Linear, ForecastOrder::Quadratic] {
            let plan = plan(order);
            for source in 0..9 {
                let users = (0..8).filter(|&step| plan.sources(step).contains(&source));
                assert!(plan.users(source).eq(users), "order {order}, step {source}");
            }
        }
    }

    #[test]
    fn orders_are_checked() {
        let orders = [0, 1, 2].map(|it| ForecastOrder::try_from(it).unwrap());
        assert_eq!(orders, [ForecastOrder::Reuse, ForecastOrder::Linear, ForecastOrder::Quadratic]);
        let message = ForecastOrder::try_from(3).unwrap_err().to_string();
        assert!(message.contains("0 (reuse), 1 or 2, got 3"), "{message}");
    }

    #[test]
    fn json_keeps_the_invariants() {
        for order in [ForecastOrder::Reuse, ForecastOrder::Linear] {
            let plan = SharingPlan::uniform(6, 2).unwrap().with_order(order);
            let json = serde_json::to_string(&plan).unwrap();
            assert_eq!(json.contains("order"), order == ForecastOrder::Linear);
            assert_eq!(serde_json::from_str::<SharingPlan>(&json).unwrap(), plan);
        }
        let with_grid = r#"{"num_steps": 3, "recompute_steps": [0],
            "grid": {"num_steps": 3, "last_step": 0.1, "timeshift": 1.0}}"#;
        let plan: SharingPlan = serde_json::from_str(with_grid).unwrap();
        assert_eq!(plan, SharingPlan::new(vec![0], 3).unwrap());
        for json in [
            r#"{"num_steps": 3, "recompute_steps": [1]}"#,
            r#"{"num_steps": 3, "recompute_steps": [0], "colour": 1}"#,
            r#"{"num_steps": 3, "recompute_steps": [0], "order": 3}"#,
            r#"{"num_steps": 3, "recompute_steps": [0], "order": -1}"#,
        ] {
            assert!(serde_json::from_str::<SharingPlan>(json).is_err(), "{json}");
        }
    }
}
