//! Plans for reuse: the paper's statistic dynamic programme, by budget or by a bound on the similarity.
//!
//! Eqs. (7) and (8) of arXiv:2504.05741. Reusing the state of step `a` at steps `a..b` costs `E(a, b)`:
//!
//! ```text
//! E(a, b) = sum_{i=a}^{b-1} (1 - S_ia)
//! C_1(i)  = E(0, i)
//! C_k(i)  = min_j C_{k-1}(j) + E(j, i)        ties: the smallest j
//! ```
//!
//! and `C_K(N)` is the cost of the best plan. The minimum is taken over all `j`: shortcuts for matrices with
//! special structure would be wrong for measured ones.

use crate::cost::{FixedPoint, PlanWithCost};
use crate::error::PlanError;
use crate::plan::{SharingPlan, check_budget};
use crate::similarity::Similarity;

/// Cheapest plans of all budgets up to a largest one, from one run of the dynamic programme.
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
    /// Plans for all budgets `1..=max_budget`.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless `1 <= max_budget <= N`.
    pub fn new(similarity: &Similarity, max_budget: usize) -> Result<Self, PlanError> {
        let num_steps = similarity.num_steps();
        check_budget(max_budget, 1, num_steps)?;
        let unit = unit_for(num_steps);
        let segment = segment_costs(similarity, unit);
        let width = num_steps + 1;
        let mut best = Vec::with_capacity(max_budget * width);
        best.extend_from_slice(&segment[..width]);
        // pulp compiles the plain loop for wider vectors.
        pulp::Arch::new().dispatch(|| {
            for k in 2..=max_budget {
                best.resize(k * width, i64::MAX);
                let (done, next) = best.split_at_mut((k - 1) * width);
                add_layer(&done[(k - 2) * width..], &segment, next, k);
            }
        });
        Ok(Self { num_steps, max_budget, unit, segment, best })
    }

    /// Largest budget planned for.
    pub fn max_budget(&self) -> usize {
        self.max_budget
    }

    /// Cost of the best plan of exactly `num_recompute` recomputes; it never rises with the budget.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless `1 <= num_recompute <= max_budget`.
    pub fn cost(&self, num_recompute: usize) -> Result<f64, PlanError> {
        check_budget(num_recompute, 1, self.max_budget)?;
        Ok(self.unit.value(self.best_to(num_recompute, self.num_steps)))
    }

    /// The best plan of exactly `num_recompute` recomputes, and its cost.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless `1 <= num_recompute <= max_budget`.
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

/// Plan of exactly `num_recompute` recomputes with the smallest total dissimilarity.
///
/// [`Planner`] gives the plans of many budgets for the price of the largest.
///
/// # Errors
/// [`PlanError::Invalid`] unless `1 <= num_recompute <= N`.
pub fn optimal_plan(similarity: &Similarity, num_recompute: usize) -> Result<PlanWithCost, PlanError> {
    Planner::new(similarity, num_recompute)?.plan(num_recompute)
}

/// Cost of any plan: the sum of `E(a, b)` over its segments.
///
/// # Errors
/// [`PlanError::Invalid`] if the plan and the similarity have different numbers of steps.
pub fn plan_cost(similarity: &Similarity, plan: &SharingPlan) -> Result<f64, PlanError> {
    PlanError::check_steps("the plan", similarity.num_steps(), plan.num_steps())?;
    let unit = unit_for(similarity.num_steps());
    let rows = plan.segments().filter_map(|(a, b)| similarity.row(a)?.get(a..b));
    Ok(unit.value(rows.flatten().map(|&it| unit.units(1.0 - it)).sum()))
}

/// Unit of the cost of `num_steps` dissimilarities of at most 2. Up to 256 steps no dissimilarity is rounded.
fn unit_for(num_steps: usize) -> FixedPoint {
    FixedPoint::for_costs_up_to(2 * num_steps)
}

/// `E(a, b)` in units at `[a * (N + 1) + b]`; zero where `b <= a`.
fn segment_costs(similarity: &Similarity, unit: FixedPoint) -> Vec<i64> {
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

/// `C_k` from `C_{k-1}` into `next`, which starts at the largest number.
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

/// Cheapest plan of the fewest recomputes whose [`mean_similarity`] is at least `at_least`.
///
/// ```text
/// K = min { k : 1 - C_k(N) / N >= at_least }
/// ```
///
/// # Errors
/// [`PlanError::Invalid`] unless `at_least` is in [-1, 1]. Any such bound can be met: recomputing at every
/// step has similarity 1.
pub fn plan_with_mean_similarity(similarity: &Similarity, at_least: f64) -> Result<PlanWithCost, PlanError> {
    check_bound(at_least)?;
    let num_steps = similarity.num_steps();
    let planner = Planner::new(similarity, num_steps)?;
    for num_recompute in 1..num_steps {
        if 1.0 - planner.cost(num_recompute)? / num_steps as f64 >= at_least {
            return planner.plan(num_recompute);
        }
    }
    planner.plan(num_steps)
}

/// Cheapest plan of the fewest recomputes whose [`worst_similarity`] is at least `at_least`.
///
/// The state of step `j` may serve step `i > j` only if it is similar enough to every step up to `i`. Among
/// the plans with the fewest recomputes the one of least cost is taken; ties go to the smallest `j`.
///
/// # Errors
/// [`PlanError::Invalid`] unless `at_least` is in [-1, 1].
pub fn plan_with_worst_similarity(similarity: &Similarity, at_least: f64) -> Result<PlanWithCost, PlanError> {
    check_bound(at_least)?;
    let num_steps = similarity.num_steps();
    let unit = unit_for(num_steps);
    let segment = segment_costs(similarity, unit);

    // best[i]: fewest recomputes that cover steps 0..i, least cost of that many, start of the last segment.
    let mut best = vec![(usize::MAX, i64::MAX, 0); num_steps + 1];
    best[0] = (0, 0, 0);
    for (j, row) in similarity.values().chunks_exact(num_steps).enumerate() {
        let (num_recompute, cost, _) = best[j];
        for i in j + 1..=num_steps {
            if row[i - 1] < at_least {
                break;
            }
            let candidate = (num_recompute + 1, cost + segment[j * (num_steps + 1) + i], j);
            best[i] = best[i].min(candidate);
        }
    }

    let mut steps = Vec::new();
    let mut end = num_steps;
    while end > 0 {
        end = best[end].2;
        steps.push(end);
    }
    steps.reverse();
    Ok(PlanWithCost { plan: SharingPlan::new(steps, num_steps)?, cost: unit.value(best[num_steps].1) })
}

/// Mean over all steps of the similarity between the state used and the step's own.
///
/// ```text
/// 1 - cost / N
/// ```
///
/// # Errors
/// [`PlanError::Invalid`] if the plan and the similarity have different numbers of steps.
pub fn mean_similarity(similarity: &Similarity, plan: &SharingPlan) -> Result<f64, PlanError> {
    Ok(1.0 - plan_cost(similarity, plan)? / plan.num_steps() as f64)
}

/// Least similarity, over all steps, between the state used and the step's own.
///
/// # Errors
/// [`PlanError::Invalid`] if the plan and the similarity have different numbers of steps.
pub fn worst_similarity(similarity: &Similarity, plan: &SharingPlan) -> Result<f64, PlanError> {
    PlanError::check_steps("the plan", similarity.num_steps(), plan.num_steps())?;
    let rows = plan.segments().filter_map(|(a, b)| similarity.row(a)?.get(a..b));
    Ok(rows.flatten().copied().fold(1.0, f64::min))
}

fn check_bound(bound: f64) -> Result<(), PlanError> {
    if (-1.0..=1.0).contains(&bound) {
        return Ok(());
    }
    Err(PlanError::invalid("a bound on the similarity", "in [-1, 1]", bound))
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
    }

    #[test]
    fn arguments_are_checked() {
        let refused = |message: String, culprit: &str| assert!(message.contains(culprit), "{message}");
        let similarity = from_dissimilarity(4, |_, _| 0.5);
        for num_recompute in [0, 5, usize::MAX] {
            refused(Planner::new(&similarity, num_recompute).unwrap_err().to_string(), "in 1..=4");
        }
        let planner = Planner::new(&similarity, 2).unwrap();
        refused(planner.plan(3).unwrap_err().to_string(), "in 1..=2, got 3");
        refused(planner.cost(0).unwrap_err().to_string(), "in 1..=2, got 0");
        for bound in [1.0001, -1.1, f64::NAN, f64::INFINITY] {
            refused(plan_with_mean_similarity(&similarity, bound).unwrap_err().to_string(), "in [-1, 1]");
            refused(plan_with_worst_similarity(&similarity, bound).unwrap_err().to_string(), "in [-1, 1]");
        }
        let longer = SharingPlan::every_step(5).unwrap();
        for checked in [plan_cost, mean_similarity, worst_similarity] {
            refused(checked(&similarity, &longer).unwrap_err().to_string(), "of 4 steps, got 5");
        }
    }

    /// States that drift: similarity falls by a hundredth a step.
    fn drifting(num_steps: usize) -> Similarity {
        let at = |it: usize| 1.0 - 0.01 * (it / num_steps).abs_diff(it % num_steps) as f64;
        Similarity::from_matrix((0..num_steps * num_steps).map(at).collect(), num_steps).unwrap()
    }

    #[test]
    fn the_mean_bound_takes_the_fewest_recomputes() {
        let similarity = drifting(24);
        for at_least in [-1.0, 0.9, 0.96, 0.99, 1.0] {
            let found = plan_with_mean_similarity(&similarity, at_least).unwrap();
            let mean = mean_similarity(&similarity, &found.plan).unwrap();
            assert_eq!(mean, found.mean_similarity());
            assert!(mean >= at_least);
            if found.plan.num_recompute() > 1 {
                let fewer =
                    Planner::new(&similarity, 24).unwrap().plan(found.plan.num_recompute() - 1).unwrap();
                assert!(fewer.mean_similarity() < at_least);
            }
        }
        assert_eq!(plan_with_mean_similarity(&similarity, 1.0).unwrap().plan.num_recompute(), 24);
        assert_eq!(plan_with_mean_similarity(&similarity, -1.0).unwrap().plan.num_recompute(), 1);
    }

    #[test]
    fn the_worst_bound_limits_the_reach_of_a_state() {
        let similarity = drifting(24);
        // A state may serve the 3 steps after its own: segments of 4.
        let found = plan_with_worst_similarity(&similarity, 0.965).unwrap();
        assert_eq!(found.plan, SharingPlan::uniform(24, 4).unwrap());
        assert_eq!(found.cost, plan_cost(&similarity, &found.plan).unwrap());
        assert!((worst_similarity(&similarity, &found.plan).unwrap() - 0.97).abs() < 1e-15);
        assert_eq!(plan_with_worst_similarity(&similarity, 1.0).unwrap().plan.num_recompute(), 24);
    }

    #[test]
    fn reaching_farthest_first_is_not_best() {
        // Step 0 reaches 1 and 2, but step 2 reaches nothing more, whereas step 1 reaches the end.
        let mut values = vec![0.0; 25];
        for (i, j) in [(1, 0), (2, 0), (2, 1), (3, 1), (4, 1)] {
            (values[i * 5 + j], values[j * 5 + i]) = (0.9, 0.9);
        }
        (0..5).for_each(|step| values[step * 6] = 1.0);
        let similarity = Similarity::from_matrix(values, 5).unwrap();
        let found = plan_with_worst_similarity(&similarity, 0.9).unwrap();
        assert_eq!(found.plan.recompute_steps(), [0, 1]);
    }
}
