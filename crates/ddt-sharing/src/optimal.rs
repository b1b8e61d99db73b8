//! The statistic dynamic programme: the cheapest plan of exactly `K` recomputes.
//!
//! Eqs. (7) and (8) of arXiv:2504.05741. Using the state of step `a` at steps `a..b` costs `E(a, b)`:
//!
//! ```text
//! E(a, b) = sum_{i=a}^{b-1} (1 - S_ia)
//! C_1(i)  = E(0, i)
//! C_k(i)  = min_j C_{k-1}(j) + E(j, i)        ties: the smallest j
//! ```
//!
//! and `C_K(N)` is the cost of the best plan. The minimum is taken over all `j`: shortcuts for matrices with
//! special structure would be wrong for measured ones. Costs are added as integers (see [`FixedPoint`]), so
//! that sums are the same in any order and a tie is a tie.

use crate::plan::{check_budget, check_step_count};
use crate::{PlanError, SharingPlan, Similarity};

/// A plan, and the sum of dissimilarities that it accepts.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanWithCost {
    /// The plan.
    pub plan: SharingPlan,
    /// Sum over all steps of the dissimilarity between the state used and the step's own (unitless).
    pub cost: f64,
}

impl PlanWithCost {
    /// Mean over all steps of the similarity between the state used and the step's own, `1 - cost / N`.
    pub fn mean_similarity(&self) -> f64 {
        1.0 - self.cost / self.plan.num_steps() as f64
    }
}

/// The cheapest plans of all budgets up to a largest one, from one run of the programme.
///
/// `O(K N^2)` time and `O((K + N) N)` memory.
#[derive(Debug, Clone)]
pub struct Planner {
    num_steps: usize,
    max_budget: usize,
    unit: FixedPoint,
    // E(a, b) at [a * (num_steps + 1) + b], for a < b.
    segment: Vec<i64>,
    // C_k(i) at [(k - 1) * (num_steps + 1) + i], for k <= i.
    best: Vec<i64>,
}

impl Planner {
    /// Runs the programme for all budgets `1..=max_budget`.
    ///
    /// # Errors
    ///
    /// [`PlanError::Budget`] unless `1 <= max_budget <= N`.
    pub fn new(similarity: &Similarity, max_budget: usize) -> Result<Self, PlanError> {
        let num_steps = similarity.num_steps();
        check_budget(max_budget, num_steps)?;
        let unit = FixedPoint::for_steps(num_steps);
        let segment = segment_costs(similarity, unit);
        let width = num_steps + 1;
        let mut best = Vec::with_capacity(max_budget * width);
        best.extend_from_slice(&segment[..width]);
        // What pulp adds here is wider vectors for a plain loop.
        pulp::Arch::new().dispatch(|| {
            for k in 2..=max_budget {
                best.resize(k * width, i64::MAX);
                let (done, next) = best.split_at_mut((k - 1) * width);
                add_layer(&done[(k - 2) * width..], &segment, next, k);
            }
        });
        Ok(Self { num_steps, max_budget, unit, segment, best })
    }

    /// Largest budget that was planned for.
    pub fn max_budget(&self) -> usize {
        self.max_budget
    }

    /// Cost of the best plan of exactly `num_recompute` recomputes; it never rises with the budget.
    ///
    /// # Errors
    ///
    /// [`PlanError::Budget`] unless `1 <= num_recompute <= max_budget`.
    pub fn cost(&self, num_recompute: usize) -> Result<f64, PlanError> {
        check_budget(num_recompute, self.max_budget)?;
        Ok(self.unit.value(self.best_to(num_recompute, self.num_steps)))
    }

    /// The best plan of exactly `num_recompute` recomputes, and its cost.
    ///
    /// # Errors
    ///
    /// [`PlanError::Budget`] unless `1 <= num_recompute <= max_budget`.
    pub fn plan(&self, num_recompute: usize) -> Result<PlanWithCost, PlanError> {
        let cost = self.cost(num_recompute)?;
        let mut steps = vec![0; num_recompute];
        let mut end = self.num_steps;
        for k in (2..=num_recompute).rev() {
            // `min_by_key` returns the first of equal minima: the smallest j.
            let to_end = |&j: &usize| self.best_to(k - 1, j) + self.segment[j * (self.num_steps + 1) + end];
            end = (k - 1..end).min_by_key(to_end).unwrap_or(k - 1);
            steps[k - 1] = end;
        }
        Ok(PlanWithCost { plan: SharingPlan::new(steps, self.num_steps)?, cost })
    }

    /// `C_k(i)`.
    fn best_to(&self, k: usize, i: usize) -> i64 {
        self.best[(k - 1) * (self.num_steps + 1) + i]
    }
}

/// Returns the plan of exactly `num_recompute` recomputes with the smallest total dissimilarity.
///
/// [`Planner`] gives the plans of many budgets for the price of the largest.
///
/// # Errors
///
/// [`PlanError::Budget`] unless `1 <= num_recompute <= N`.
pub fn optimal_plan(similarity: &Similarity, num_recompute: usize) -> Result<PlanWithCost, PlanError> {
    Planner::new(similarity, num_recompute)?.plan(num_recompute)
}

/// Returns the cost of any plan: the sum of `E(a, b)` over its segments.
///
/// # Errors
///
/// [`PlanError::StepCount`] if the plan and the similarity have different numbers of steps.
pub fn plan_cost(similarity: &Similarity, plan: &SharingPlan) -> Result<f64, PlanError> {
    check_step_count("the plan", similarity.num_steps(), plan.num_steps())?;
    let unit = FixedPoint::for_steps(similarity.num_steps());
    let rows = plan.segments().filter_map(|(a, b)| similarity.row(a)?.get(a..b));
    Ok(unit.value(rows.flatten().map(|&it| unit.units(1.0 - it)).sum()))
}

/// Dissimilarities as whole numbers of a small power of two.
///
/// `1 - S` in f64 is a whole multiple of `2^-53` for every `S` in [-1, 1], so up to 256 steps nothing is
/// rounded; beyond, the unit grows so that the largest cost, `2 N`, still fits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FixedPoint {
    units_per_one: f64,
}

impl FixedPoint {
    pub(crate) fn for_steps(num_steps: usize) -> Self {
        // 2 N 2^bits <= 2^62.
        let bits = (61 - num_steps.next_power_of_two().ilog2()).min(53);
        Self { units_per_one: (1_u64 << bits) as f64 }
    }

    pub(crate) fn units(self, dissimilarity: f64) -> i64 {
        (dissimilarity * self.units_per_one).round() as i64
    }

    pub(crate) fn value(self, units: i64) -> f64 {
        units as f64 / self.units_per_one
    }
}

/// `E(a, b)` in units at `[a * (N + 1) + b]`; zero where `b <= a`.
pub(crate) fn segment_costs(similarity: &Similarity, unit: FixedPoint) -> Vec<i64> {
    let width = similarity.num_steps() + 1;
    let mut segment = vec![0; similarity.num_steps() * width];
    let rows = similarity.values().chunks_exact(width - 1);
    for (a, (costs, row)) in segment.chunks_exact_mut(width).zip(rows).enumerate() {
        let mut sum = 0;
        for (cost, similarity) in costs[a + 1..].iter_mut().zip(&row[a..]) {
            sum += unit.units(1.0 - similarity);
            *cost = sum;
        }
    }
    segment
}

/// Computes `C_k` into `next` (which starts out as large as can be) from `C_{k-1}`.
#[inline(always)]
fn add_layer(best: &[i64], segment: &[i64], next: &mut [i64], k: usize) {
    let width = next.len();
    for (j, row) in segment.chunks_exact(width).enumerate().skip(k - 1) {
        let before = best[j];
        for (next, &cost) in next[j + 1..].iter_mut().zip(&row[j + 1..]) {
            *next = (before + cost).min(*next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The similarity whose dissimilarities below the diagonal are `lower(row, col)`.
    fn from_dissimilarity(num_steps: usize, lower: impl Fn(usize, usize) -> f64) -> Similarity {
        let at = |i: usize, j: usize| if i == j { 1.0 } else { 1.0 - lower(i.max(j), i.min(j)) };
        let values = (0..num_steps * num_steps).map(|it| at(it / num_steps, it % num_steps)).collect();
        Similarity::from_matrix(values, num_steps).unwrap()
    }

    #[test]
    fn finds_where_the_states_change() {
        // Two groups of equal states, {0, 1, 2} and {3, 4}.
        let similarity = from_dissimilarity(5, |i, j| if i >= 3 && j < 3 { 1.0 } else { 0.0 });
        let best = optimal_plan(&similarity, 2).unwrap();
        assert_eq!(best.plan.recompute_steps(), [0, 3]);
        assert_eq!(best.cost, 0.0);
        assert_eq!(optimal_plan(&similarity, 1).unwrap().cost, 2.0);
        assert_eq!(optimal_plan(&similarity, 1).unwrap().mean_similarity(), 0.6);
    }

    #[test]
    fn ties_go_to_the_smallest_step() {
        // 0.1 has no exact sum in floating point; every plan of K recomputes costs 0.1 (N - K).
        for constant in [0.5, 0.1] {
            let planner = Planner::new(&from_dissimilarity(30, |_, _| constant), 30).unwrap();
            for num_recompute in 1..=30 {
                let best = planner.plan(num_recompute).unwrap();
                assert_eq!(best.plan.recompute_steps(), Vec::from_iter(0..num_recompute));
                assert!((best.cost - constant * (30 - num_recompute) as f64).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn the_largest_cost_fits() {
        for num_steps in [1, 2, 255, 256, 257, 600] {
            let similarity = from_dissimilarity(num_steps, |_, _| 2.0);
            let planner = Planner::new(&similarity, 1).unwrap();
            assert_eq!(planner.cost(1).unwrap(), 2.0 * (num_steps - 1) as f64);
        }
        let most = FixedPoint::for_steps(crate::MAX_SIMILARITY_STEPS);
        assert!(most.units(2.0).checked_mul(2 * crate::MAX_SIMILARITY_STEPS as i64 - 1).is_some());
    }

    #[test]
    fn budgets_and_plans_are_checked() {
        let similarity = from_dissimilarity(4, |_, _| 0.5);
        for num_recompute in [0, 5, usize::MAX] {
            assert!(matches!(
                Planner::new(&similarity, num_recompute),
                Err(PlanError::Budget { max: 4, .. })
            ));
        }
        let planner = Planner::new(&similarity, 2).unwrap();
        assert!(matches!(planner.plan(3), Err(PlanError::Budget { num_recompute: 3, max: 2 })));
        assert!(matches!(planner.cost(0), Err(PlanError::Budget { .. })));
        let longer = SharingPlan::every_step(5).unwrap();
        assert!(matches!(plan_cost(&similarity, &longer), Err(PlanError::StepCount { .. })));
    }
}
