//! Against every plan there is.

use ddt_sharing::{
    Planner, SharingPlan, Similarity, mean_similarity, plan_cost, plan_with_mean_similarity,
    plan_with_worst_similarity, worst_similarity,
};
use proptest::prelude::*;

/// Builds a similarity from the entries below its diagonal.
fn similarity_of(num_steps: usize, lower: &[f64]) -> Similarity {
    let mut values = vec![1.0; num_steps * num_steps];
    let mut lower = lower.iter();
    for row in 0..num_steps {
        for col in 0..row {
            let value = *lower.next().unwrap();
            (values[row * num_steps + col], values[col * num_steps + row]) = (value, value);
        }
    }
    Similarity::from_matrix(values, num_steps).unwrap()
}

/// Any similarity of 1 to 10 steps; `coarse` ones have many ties.
fn any_similarity() -> impl Strategy<Value = Similarity> {
    let sized = |num_steps: usize| {
        let len = num_steps * (num_steps - 1) / 2;
        let coarse = prop::collection::vec((-4_i32..=4).prop_map(|it| f64::from(it) / 4.0), len);
        let tenths = prop::collection::vec((0_i32..=3).prop_map(|it| 1.0 - f64::from(it) / 10.0), len);
        let fine = prop::collection::vec(-1.0_f64..=1.0, len);
        prop_oneof![coarse, tenths, fine].prop_map(move |lower| similarity_of(num_steps, &lower))
    };
    (1_usize..=10).prop_flat_map(sized)
}

/// All plans of a number of steps, as sets of recompute steps.
fn all_plans(num_steps: usize) -> impl Iterator<Item = SharingPlan> {
    (0..1_usize << (num_steps - 1)).map(move |set| {
        let later = (1..num_steps).filter(|step| set >> (step - 1) & 1 == 1);
        SharingPlan::new([0].into_iter().chain(later).collect(), num_steps).unwrap()
    })
}

/// The order ties are broken in: the last recompute step first, the smaller the better.
fn from_the_end(plan: &SharingPlan) -> Vec<usize> {
    plan.recompute_steps().iter().rev().copied().collect()
}

/// The cost of a plan, exactly: up to 256 steps, `1 - S` is a whole number of 2^-53. As f64, costs above 1 that differ
/// by one of them may be equal.
fn exact_cost(similarity: &Similarity, plan: &SharingPlan) -> i64 {
    let mut used = 0;
    let of_step = |step: usize| {
        used = if plan.is_recompute(step) { step } else { used };
        (similarity.dissimilarity(step, used).unwrap() * 2f64.powi(53)) as i64
    };
    (0..similarity.num_steps()).map(of_step).sum()
}

proptest! {
    #[test]
    fn every_budget_is_optimal_and_ties_go_to_the_smallest(similarity in any_similarity()) {
        let num_steps = similarity.num_steps();
        let planner = Planner::new(&similarity, num_steps).unwrap();
        let mut last_cost = f64::INFINITY;
        for num_recompute in 1..=num_steps {
            let best = all_plans(num_steps)
                .filter(|plan| plan.num_recompute() == num_recompute)
                .min_by_key(|plan| (exact_cost(&similarity, plan), from_the_end(plan)))
                .unwrap();
            let found = planner.plan(num_recompute).unwrap();
            prop_assert_eq!(found.cost, plan_cost(&similarity, &best).unwrap());
            prop_assert_eq!(found.plan, best);
            prop_assert_eq!(planner.cost(num_recompute).unwrap(), found.cost);
            prop_assert!(found.cost <= last_cost);
            last_cost = found.cost;
        }
        prop_assert_eq!(planner.plan(num_steps).unwrap().plan, SharingPlan::every_step(num_steps).unwrap());
        prop_assert_eq!(last_cost, 0.0);
    }

    #[test]
    fn the_cost_is_the_sum_over_the_steps(similarity in any_similarity(), seed in any::<usize>()) {
        let num_steps = similarity.num_steps();
        let plan = all_plans(num_steps).nth(seed % (1 << (num_steps - 1))).unwrap();
        let mut used = 0;
        let mut cost = 0.0;
        for step in 0..num_steps {
            used = if plan.is_recompute(step) { step } else { used };
            cost += similarity.dissimilarity(step, used).unwrap();
        }
        prop_assert!((plan_cost(&similarity, &plan).unwrap() - cost).abs() < 1e-12);
    }

    #[test]
    fn bounds_are_met_with_the_fewest(similarity in any_similarity(), at_least in -1.0_f64..=1.0) {
        let num_steps = similarity.num_steps();
        let fewest = |meets: &dyn Fn(&SharingPlan) -> bool| {
            let costs = all_plans(num_steps)
                .filter(|plan| meets(plan))
                .map(|plan| (plan.num_recompute(), plan_cost(&similarity, &plan).unwrap()));
            costs.min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))).unwrap()
        };

        let found = plan_with_mean_similarity(&similarity, at_least).unwrap();
        let expected = fewest(&|plan| mean_similarity(&similarity, plan).unwrap() >= at_least);
        prop_assert_eq!((found.plan.num_recompute(), found.cost), expected);

        let found = plan_with_worst_similarity(&similarity, at_least).unwrap();
        let expected = fewest(&|plan| worst_similarity(&similarity, plan).unwrap() >= at_least);
        prop_assert_eq!((found.plan.num_recompute(), found.cost), expected);
    }
}
