//! A budget from a bound: the fewest recomputes whose reused states stay similar enough.

use crate::optimal::{FixedPoint, segment_costs};
use crate::plan::check_step_count;
use crate::{PlanError, PlanWithCost, Planner, SharingPlan, Similarity, plan_cost};

/// Returns the cheapest plan of the fewest recomputes whose [`mean_similarity`] is at least `at_least`.
///
/// ```text
/// K = min { k : 1 - C_k(N) / N >= at_least }
/// ```
///
/// # Errors
///
/// [`PlanError::Bound`] unless `at_least` is in [-1, 1]. Any such bound can be met: recomputing at every
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

/// Returns the cheapest plan of the fewest recomputes whose [`worst_similarity`] is at least `at_least`.
///
/// The state of step `j` may serve step `i > j` only if it is similar enough to every step up to `i`. Among
/// the plans with the fewest recomputes the one of least cost is taken; ties go to the smallest `j`.
///
/// # Errors
///
/// [`PlanError::Bound`] unless `at_least` is in [-1, 1].
pub fn plan_with_worst_similarity(similarity: &Similarity, at_least: f64) -> Result<PlanWithCost, PlanError> {
    check_bound(at_least)?;
    let num_steps = similarity.num_steps();
    let unit = FixedPoint::for_steps(num_steps);
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

/// Returns the mean over all steps of the similarity between the state used and the step's own.
///
/// ```text
/// 1 - cost / N
/// ```
///
/// # Errors
///
/// [`PlanError::StepCount`] if the plan and the similarity have different numbers of steps.
pub fn mean_similarity(similarity: &Similarity, plan: &SharingPlan) -> Result<f64, PlanError> {
    Ok(1.0 - plan_cost(similarity, plan)? / plan.num_steps() as f64)
}

/// Returns the least similarity, over all steps, between the state used and the step's own.
///
/// # Errors
///
/// [`PlanError::StepCount`] if the plan and the similarity have different numbers of steps.
pub fn worst_similarity(similarity: &Similarity, plan: &SharingPlan) -> Result<f64, PlanError> {
    check_step_count("the plan", similarity.num_steps(), plan.num_steps())?;
    let rows = plan.segments().filter_map(|(a, b)| similarity.row(a)?.get(a..b));
    Ok(rows.flatten().copied().fold(1.0, f64::min))
}

fn check_bound(bound: f64) -> Result<(), PlanError> {
    if (-1.0..=1.0).contains(&bound) { Ok(()) } else { Err(PlanError::Bound { bound }) }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn bounds_are_checked() {
        let similarity = drifting(3);
        for bound in [1.0001, -1.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(plan_with_mean_similarity(&similarity, bound), Err(PlanError::Bound { .. })));
            assert!(matches!(plan_with_worst_similarity(&similarity, bound), Err(PlanError::Bound { .. })));
        }
        let longer = SharingPlan::every_step(4).unwrap();
        assert!(matches!(worst_similarity(&similarity, &longer), Err(PlanError::StepCount { .. })));
        assert!(matches!(mean_similarity(&similarity, &longer), Err(PlanError::StepCount { .. })));
    }
}
