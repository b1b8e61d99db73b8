//! Plans for forecasts: which steps to recompute when the others extrapolate in time.
//!
//! Between recomputes the self-condition is the Lagrange polynomial in `t` through the last recomputed ones,
//! `f_i = sum_j w_j z_j`. Its error follows from the mean inner products `G`:
//!
//! ```text
//! e(i; a, b, ...)^2 = |z_i - f_i|^2 / |z_i|^2 = (G_ii + sum_jl w_j w_l G_jl - 2 sum_j w_j G_ij) / G_ii
//! E(a, b, c)        = sum_{i=b+1}^{c-1} v_i e(i; a, b) cost of the segment [b, c) after a recompute at a
//! D_1(0, c)         = sum_{i=1}^{c-1} v_i e(i; 0)      the first segment reuses
//! D_k(b, c)         = min_a D_{k-1}(a, b) + E(a, b, c) ties: the smallest a
//! C_k(N)            = min_b D_k(b, N)                  ties: the smallest b
//! ```
//!
//! `v_i`, of mean 1, is the length of step `i` times the factor by which guidance enlarges errors there: it says how
//! far an error of that step's velocity moves the latents. The cost of a segment depends on the recompute before it,
//! so the state of the dynamic programme is the pair of a segment's ends. Segments have at most [`MAX_SEGMENT`]
//! steps. Extrapolating features of a network over sampling steps is known from undivided transformers: TaylorSeer
//! (arXiv:2503.06923), FoCa (arXiv:2508.16211).

use crate::cost::{FixedPoint, PlanWithCost};
use crate::error::PlanError;
use crate::plan::{ForecastOrder, SharingPlan, check_budget};
use crate::similarity::InnerProducts;

/// Longest segment of a forecast plan, in steps.
pub const MAX_SEGMENT: usize = 64;

/// Larger relative errors count as this much, so that costs are bounded.
const MAX_ERROR: f64 = 1000.0;

/// Cost of what is not allowed; twice as much still fits.
const INFEASIBLE: i64 = i64::MAX / 2;

/// Weights with which values at distinct `times` make the Lagrange polynomial through them at `t`.
///
/// ```text
/// w_j = prod_{l != j} (t - t_l) / (t_j - t_l)
/// ```
///
/// One time gives the weight 1: its value is reused.
///
/// ```
/// // From 0.1 and 0.2 to 0.4: the value at 0.2 plus twice the last change.
/// let weights = ddt_sharing::forecast_weights(&[0.1, 0.2], 0.4);
/// assert!((weights[0] + 2.0).abs() < 1e-12 && (weights[1] - 3.0).abs() < 1e-12);
/// ```
pub fn forecast_weights(times: &[f64], t: f64) -> Vec<f64> {
    (0..times.len()).map(|j| weight(times.iter().copied(), j, t)).collect()
}

/// `w_j` of [`forecast_weights`].
fn weight(times: impl Iterator<Item = f64> + Clone, j: usize, t: f64) -> f64 {
    let own = times.clone().nth(j).unwrap_or(t);
    let others = times.enumerate().filter(|(l, _)| *l != j);
    others.map(|(_, other)| (t - other) / (own - other)).product()
}

/// Errors of forecasting the self-condition on a grid of times.
#[derive(Debug, Clone)]
pub struct Forecasts<'a> {
    products: &'a InnerProducts,
    // Invariant: num_steps + 1 finite, increasing times.
    times: &'a [f64],
    order: ForecastOrder,
    // Invariant: num_steps positive weights of mean 1.
    weights: Vec<f64>,
}

impl<'a> Forecasts<'a> {
    /// Forecasts of an order, from inner products measured on a grid of `N` steps and its `N + 1` times.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless there are `N + 1` finite, increasing times.
    pub fn new(
        products: &'a InnerProducts,
        times: &'a [f64],
        order: ForecastOrder,
    ) -> Result<Self, PlanError> {
        if times.len() != products.num_steps() + 1 {
            let expected = format!("{}, one more than the measured steps", products.num_steps() + 1);
            return Err(PlanError::invalid("the number of times", expected, times.len()));
        }
        let increase = |pair: &[f64]| pair[0] < pair[1] && pair[0].is_finite() && pair[1].is_finite();
        if let Some(step) = times.windows(2).position(|pair| !increase(pair)) {
            let got = format!("{} and {} at the ends of step {step}", times[step], times[step + 1]);
            return Err(PlanError::invalid("times", "finite and strictly increasing", got));
        }
        let weights = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Ok(Self { products, times, order, weights: of_mean_one(weights) })
    }

    /// Also weighs each step by the factor by which guidance enlarges errors of the velocity there.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless there are `N` factors, finite and above 0.
    pub fn with_guidance(self, factors: &[f64]) -> Result<Self, PlanError> {
        if factors.len() != self.num_steps() {
            return Err(PlanError::invalid(
                "the number of guidance factors",
                self.num_steps(),
                factors.len(),
            ));
        }
        if let Some(bad) = factors.iter().find(|it| !(**it > 0.0 && it.is_finite())) {
            return Err(PlanError::invalid("a guidance factor", "finite and above 0", bad));
        }
        let weights = self.weights.iter().zip(factors).map(|(weight, factor)| weight * factor).collect();
        Ok(Self { weights: of_mean_one(weights), ..self })
    }

    /// Number of steps `N`.
    pub fn num_steps(&self) -> usize {
        self.products.num_steps()
    }

    /// Order of the forecasts.
    pub fn order(&self) -> ForecastOrder {
        self.order
    }

    /// Relative RMS error of the self-condition in use at each step, `(N)`; 0 where it is recomputed.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] for a plan of another number of steps.
    pub fn errors(&self, plan: &SharingPlan) -> Result<Vec<f64>, PlanError> {
        plan.check_num_steps(self.num_steps())?;
        let plan = plan.clone().with_order(self.order);
        Ok((0..self.num_steps()).map(|step| self.error(plan.sources(step), step)).collect())
    }

    /// Cost of a plan: the sum of its steps' errors, each times the weight of the step.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] for a plan of another number of steps.
    pub fn cost(&self, plan: &SharingPlan) -> Result<f64, PlanError> {
        Ok(self.unit().value(self.units(plan)?))
    }

    fn units(&self, plan: &SharingPlan) -> Result<i64, PlanError> {
        let errors = self.errors(plan)?;
        Ok(errors.iter().enumerate().map(|(step, &error)| self.step_units(step, error)).sum())
    }

    /// Relative error of forecasting `step` from the self-conditions of `sources`.
    fn error(&self, sources: &[usize], step: usize) -> f64 {
        if sources.contains(&step) {
            return 0.0;
        }
        let n = self.num_steps();
        let product = |i: usize, j: usize| self.products.values()[i * n + j];
        let times = sources.iter().map(|&source| self.times[source]);
        let mut square = product(step, step);
        for (j, &source) in sources.iter().enumerate() {
            let w_j = weight(times.clone(), j, self.times[step]);
            square -= 2.0 * w_j * product(step, source);
            for (l, &other) in sources.iter().enumerate() {
                square += w_j * weight(times.clone(), l, self.times[step]) * product(source, other);
            }
        }
        (square.max(0.0) / product(step, step)).sqrt().min(MAX_ERROR)
    }

    /// Weights of the steps have the mean 1, so `N` errors of at most [`MAX_ERROR`] are the largest cost.
    fn unit(&self) -> FixedPoint {
        FixedPoint::for_costs_up_to(2 * MAX_ERROR as usize * self.num_steps())
    }

    fn step_units(&self, step: usize, error: f64) -> i64 {
        self.unit().units(error * self.weights[step])
    }

    /// Costs of the segments that begin at the last of `sources` and have 1, 2, ... steps.
    fn segment_costs(&self, sources: &[usize], max_error: f64, costs: &mut [i64]) {
        let first = sources.last().copied().unwrap_or(0);
        let mut sum = 0;
        for (step, cost) in (first..).zip(costs) {
            let error = self.error(sources, step);
            let allowed = error <= max_error && sum < INFEASIBLE;
            sum = if allowed { sum + self.step_units(step, error) } else { INFEASIBLE };
            *cost = sum;
        }
    }
}

fn of_mean_one(mut weights: Vec<f64>) -> Vec<f64> {
    let mean = weights.iter().sum::<f64>() / weights.len() as f64;
    weights.iter_mut().for_each(|it| *it /= mean);
    weights
}

/// Cheapest forecast plans of all budgets up to a largest one, from one run of the dynamic programme.
///
/// Forecasts of order 2 are planned by the errors of order 1, which is not exact: where uniform steps cost less by the
/// errors of order 2, the plan is uniform. Costs are those of order 2.
///
/// `O(K N W^2)` time and `O(K N W)` memory for segments of up to `W` steps.
#[derive(Debug, Clone)]
pub struct ForecastPlanner<'a> {
    forecasts: Forecasts<'a>,
    // Per budget: the cost in units, and the last recompute step.
    best: Vec<(i64, usize)>,
    // Per recompute step b: the gap to the recompute before, at [(k - 2) * reach + (c - b - 1)] for the k-th
    // recompute and the end c of the segment; `reach` segment lengths are possible.
    gaps: Vec<Vec<u8>>,
}

impl<'a> ForecastPlanner<'a> {
    /// Plans for all budgets up to `max_budget`.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless `N / `[`MAX_SEGMENT`]` <= max_budget <= N`, and for
    /// [`ForecastOrder::Reuse`], whose plans are those of [`optimal_plan`](crate::optimal_plan).
    pub fn new(forecasts: &Forecasts<'a>, max_budget: usize) -> Result<Self, PlanError> {
        Self::within(forecasts, max_budget, MAX_SEGMENT, f64::INFINITY)
    }

    /// Smallest budget that segments of [`MAX_SEGMENT`] steps allow.
    pub fn min_budget(&self) -> usize {
        1 + self.best.iter().take_while(|(cost, _)| *cost >= INFEASIBLE).count()
    }

    /// Largest budget planned for.
    pub fn max_budget(&self) -> usize {
        self.best.len()
    }

    /// The best plan of exactly `num_recompute` recomputes, and its cost.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless `min_budget <= num_recompute <= max_budget`.
    pub fn plan(&self, num_recompute: usize) -> Result<PlanWithCost, PlanError> {
        check_budget(num_recompute, self.min_budget(), self.max_budget())?;
        let n = self.forecasts.num_steps();
        let mut steps = vec![0; num_recompute];
        let (mut begin, mut end) = (self.best[num_recompute - 1].1, n);
        for k in (2..=num_recompute).rev() {
            steps[k - 1] = begin;
            let gaps = &self.gaps[begin];
            let reach = gaps.len() / (self.max_budget() - 1);
            (begin, end) = (begin - usize::from(gaps[(k - 2) * reach + end - begin - 1]), begin);
        }
        let order = self.forecasts.order;
        let with_cost = |plan: SharingPlan| -> Result<PlanWithCost, PlanError> {
            let plan = plan.with_order(order);
            let cost = self.forecasts.cost(&plan)?;
            Ok(PlanWithCost { plan, cost })
        };
        let found = with_cost(SharingPlan::new(steps, n)?)?;
        if order == ForecastOrder::Linear {
            return Ok(found);
        }
        let uniform = with_cost(SharingPlan::uniform_budget(n, num_recompute)?)?;
        Ok(if uniform.cost < found.cost { uniform } else { found })
    }

    /// The programme for segments of at most `window` steps whose errors are at most `max_error`.
    fn within(
        forecasts: &Forecasts<'a>,
        max_budget: usize,
        window: usize,
        max_error: f64,
    ) -> Result<Self, PlanError> {
        let n = forecasts.num_steps();
        if forecasts.order == ForecastOrder::Reuse {
            return Err(PlanError::invalid(
                "the order of a forecast plan",
                "1 or 2 (optimal_plan reuses)",
                0,
            ));
        }
        check_budget(max_budget, n.div_ceil(window), n)?;
        let linear = Forecasts { order: ForecastOrder::Linear, ..forecasts.clone() };
        // Per recompute step b of the window: D_k(b, c) at [(k - 1) * reach + (c - b - 1)].
        let mut layers: Vec<Vec<i64>> = Vec::with_capacity(n);
        let mut gaps = Vec::with_capacity(n);
        let mut segment = vec![0; window];
        for begin in 0..n {
            let reach = window.min(n - begin);
            let mut layer = vec![INFEASIBLE; max_budget * reach];
            let mut gap = vec![0; (max_budget - 1) * reach];
            if begin == 0 {
                linear.segment_costs(&[0], max_error, &mut layer[..reach]);
            }
            let first = begin.saturating_sub(window);
            for (before, earlier) in layers.iter().enumerate().skip(first) {
                linear.segment_costs(&[before, begin], max_error, &mut segment[..reach]);
                let length = begin - before;
                // The recompute before is at most the (before + 1)-th.
                let earlier = earlier.chunks_exact(window.min(n - before)).take(before + 1);
                let later = layer.chunks_exact_mut(reach).skip(1).zip(gap.chunks_exact_mut(reach));
                for (earlier, (costs, gaps)) in earlier.zip(later) {
                    extend(earlier[length - 1], &segment[..reach], length as u8, costs, gaps);
                }
            }
            if let Some(done) = begin.checked_sub(window) {
                layers[done] = Vec::new();
            }
            layers.push(layer);
            gaps.push(gap);
        }
        let total = |k: usize, begin: usize| layers[begin][k * (n - begin) + n - begin - 1];
        let best = |k: usize| (n.saturating_sub(window)..n).map(|begin| (total(k, begin), begin)).min();
        let best = (0..max_budget).map(|k| best(k).unwrap_or((INFEASIBLE, 0))).collect();
        Ok(Self { forecasts: forecasts.clone(), best, gaps })
    }
}

/// Relaxes the costs of the segments after a recompute `gap` steps before theirs.
#[inline]
fn extend(earlier: i64, segment: &[i64], gap: u8, costs: &mut [i64], gaps: &mut [u8]) {
    if earlier >= INFEASIBLE {
        return;
    }
    for ((cost, best_gap), &segment) in costs.iter_mut().zip(gaps).zip(segment) {
        let through = earlier + segment;
        if through < *cost {
            (*cost, *best_gap) = (through, gap);
        }
    }
}

/// Forecast plan of exactly `num_recompute` recomputes with the smallest cost.
///
/// [`ForecastPlanner`] gives the plans of many budgets for the price of the largest.
///
/// # Errors
/// [`PlanError::Invalid`] as for [`ForecastPlanner::new`].
pub fn forecast_plan(forecasts: &Forecasts<'_>, num_recompute: usize) -> Result<PlanWithCost, PlanError> {
    ForecastPlanner::new(forecasts, num_recompute)?.plan(num_recompute)
}

/// Cheapest forecast plan of the fewest recomputes whose mean error is at most `at_most`.
///
/// # Errors
/// [`PlanError::Invalid`] for [`ForecastOrder::Reuse`], and unless the bound is finite and at least 0. Any such
/// bound can be met: recomputing at every step has no error.
pub fn forecast_plan_with_mean_error(
    forecasts: &Forecasts<'_>,
    at_most: f64,
) -> Result<PlanWithCost, PlanError> {
    fewest(forecasts, at_most, f64::INFINITY, |plan| Ok(plan.mean_error()))
}

/// Cheapest forecast plan of the fewest recomputes whose error is at most `at_most` at every step.
///
/// Exact for order 1; for order 2, the fewest among the plans of [`ForecastPlanner`].
///
/// # Errors
/// Those of [`forecast_plan_with_mean_error`].
pub fn forecast_plan_with_worst_error(
    forecasts: &Forecasts<'_>,
    at_most: f64,
) -> Result<PlanWithCost, PlanError> {
    let max_error = if forecasts.order == ForecastOrder::Linear { at_most } else { f64::INFINITY };
    fewest(forecasts, at_most, max_error, |plan| {
        Ok(forecasts.errors(&plan.plan)?.into_iter().fold(0.0, f64::max))
    })
}

/// The plan of the smallest budget whose `error` is at most `at_most`.
fn fewest(
    forecasts: &Forecasts<'_>,
    at_most: f64,
    max_error: f64,
    error: impl Fn(&PlanWithCost) -> Result<f64, PlanError>,
) -> Result<PlanWithCost, PlanError> {
    if !(at_most >= 0.0 && at_most.is_finite()) {
        return Err(PlanError::invalid("a bound on the error", "finite and at least 0", at_most));
    }
    let n = forecasts.num_steps();
    let planner = ForecastPlanner::within(forecasts, n, MAX_SEGMENT.min(n), max_error)?;
    for num_recompute in planner.min_budget()..n {
        let found = planner.plan(num_recompute)?;
        if error(&found)? <= at_most {
            return Ok(found);
        }
    }
    planner.plan(n)
}

#[cfg(test)]
mod tests;
