//! Tests of forecast errors and of the planner, against the definition and against all plans.

use proptest::prelude::*;

use super::*;
use crate::statistic::SimilarityAccumulator;

/// Uneven times of `n` steps.
fn times(n: usize) -> Vec<f64> {
    (0..=n).map(|i| i as f64 / (i as f64 + 1.3 * (n - i) as f64)).collect()
}

fn products_of(states: &[Vec<f32>]) -> InnerProducts {
    let mut statistic = SimilarityAccumulator::new(states.len()).unwrap();
    statistic.add(states, states[0].len()).unwrap();
    statistic.inner_products().unwrap()
}

fn forecasts<'a>(products: &'a InnerProducts, times: &'a [f64], order: ForecastOrder) -> Forecasts<'a> {
    Forecasts::new(products, times, order).unwrap()
}

/// States that move along a smooth curve, fastest at the end; two channels for each frequency.
fn smooth(n: usize) -> Vec<Vec<f32>> {
    let state = |t: f64| (1..5).flat_map(move |f| [(t * f64::from(f)).sin(), (t * f64::from(f)).cos()]);
    times(n)[..n].iter().map(|&t| state(3.0 * t.powi(3)).map(|it| it as f32).collect()).collect()
}

/// All plans whose segments have at most `window` steps.
fn all_plans(n: usize, window: usize) -> impl Iterator<Item = SharingPlan> {
    (0..1_usize << (n - 1))
        .map(move |set| {
            let later = (1..n).filter(|step| set >> (step - 1) & 1 == 1);
            SharingPlan::new([0].into_iter().chain(later).collect(), n).unwrap()
        })
        .filter(move |plan| plan.segments().all(|(a, b)| b - a <= window))
}

#[test]
fn weights_reproduce_polynomials() {
    let nodes = [0.1, 0.25, 0.3];
    for points in 1..=3 {
        let nodes = &nodes[3 - points..];
        for power in 0..points as i32 {
            let got: f64 =
                forecast_weights(nodes, 0.7).iter().zip(nodes).map(|(w, t)| w * t.powi(power)).sum();
            assert!((got - 0.7_f64.powi(power)).abs() < 1e-12, "{points} points, power {power}");
        }
        let at_node = forecast_weights(nodes, nodes[0]);
        assert_eq!(at_node[0], 1.0);
        assert!(at_node[1..].iter().all(|&it| it == 0.0));
    }
    assert_eq!(forecast_weights(&[0.3], 0.9), [1.0]);
    assert!(forecast_weights(&[], 0.9).is_empty());
}

#[test]
fn errors_are_those_of_the_states() {
    let (n, states, times) = (9, smooth(9), times(9));
    let products = products_of(&states);
    for order in [ForecastOrder::Reuse, ForecastOrder::Linear, ForecastOrder::Quadratic] {
        let plan = SharingPlan::new(vec![0, 1, 3, 6], n).unwrap().with_order(order);
        let forecasts = forecasts(&products, &times, order);
        let errors = forecasts.errors(&plan).unwrap();
        // Over flow time, which ends at 1: a step counts by its length.
        let lengths = times.windows(2).map(|it| it[1] - it[0]);
        let mean: f64 = errors.iter().zip(lengths).map(|(error, length)| error * length).sum();
        assert!((forecasts.cost(&plan).unwrap() / n as f64 - mean).abs() < 1e-9, "order {order}");
        for (step, error) in errors.iter().enumerate() {
            let sources = plan.sources(step);
            let nodes: Vec<f64> = sources.iter().map(|&it| times[it]).collect();
            let weights = forecast_weights(&nodes, times[step]);
            let (mut difference, mut square) = (0.0, 0.0);
            for (channel, &truth) in states[step].iter().enumerate() {
                let at = |source: usize| f64::from(states[source][channel]);
                let forecast: f64 = sources.iter().zip(&weights).map(|(&it, w)| w * at(it)).sum();
                difference += (f64::from(truth) - forecast).powi(2);
                square += f64::from(truth).powi(2);
            }
            assert!((error - (difference / square).sqrt()).abs() < 1e-7, "order {order}, step {step}");
        }
    }
}

#[test]
fn states_on_a_line_need_two_recomputes_and_on_a_parabola_three() {
    let (n, times) = (12, times(12));
    let state = |power: i32| {
        let at = move |t: &f64| vec![1.0, (2.0 * t).powi(power) as f32, (3.0 * t) as f32];
        times[..n].iter().map(at).collect::<Vec<_>>()
    };
    for (order, power) in [(ForecastOrder::Linear, 1), (ForecastOrder::Quadratic, 2)] {
        let products = products_of(&state(power));
        let forecasts = forecasts(&products, &times, order);
        // The first segment reuses, so it should be short.
        let plan = SharingPlan::new((0..=power as usize).collect(), n).unwrap();
        assert!(forecasts.cost(&plan).unwrap() < 1e-5);
        let reuse = Forecasts::new(&products, &times, ForecastOrder::Reuse).unwrap();
        assert!(reuse.cost(&plan).unwrap() > 0.5);
    }
    let products = products_of(&state(1));
    let best = forecast_plan(&forecasts(&products, &times, ForecastOrder::Linear), 2).unwrap();
    assert_eq!(best.plan.recompute_steps(), [0, 1]);
    assert_eq!(best.plan.order(), ForecastOrder::Linear);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Small whole numbers, so that many costs tie.
    #[test]
    fn plans_of_order_1_are_the_best_of_all(
        states in (1_usize..=9).prop_flat_map(|n| {
            prop::collection::vec(prop::collection::vec((-2_i32..=2).prop_map(|it| it as f32 + 0.5), 3), n)
        }),
        window in 1_usize..=9,
    ) {
        let n = states.len();
        let (products, times) = (products_of(&states), times(n));
        let forecasts = forecasts(&products, &times, ForecastOrder::Linear);
        let planner = ForecastPlanner::within(&forecasts, n, window, f64::INFINITY).unwrap();
        prop_assert_eq!(planner.min_budget(), n.div_ceil(window));
        for num_recompute in planner.min_budget()..=n {
            let from_the_end = |plan: &SharingPlan| plan.recompute_steps().iter().rev().copied().collect::<Vec<_>>();
            let best = all_plans(n, window)
                .filter(|plan| plan.num_recompute() == num_recompute)
                .min_by_key(|plan| (forecasts.units(plan).unwrap(), from_the_end(plan)))
                .unwrap();
            let found = planner.plan(num_recompute).unwrap();
            prop_assert_eq!(found.plan.recompute_steps(), best.recompute_steps());
            prop_assert_eq!(planner.best[num_recompute - 1].0, forecasts.units(&best).unwrap());
            prop_assert_eq!(found.cost, forecasts.cost(&best).unwrap());
        }
    }

    #[test]
    fn bounds_are_met_with_the_fewest(
        states in (1_usize..=8).prop_flat_map(|n| {
            prop::collection::vec(prop::collection::vec(-1.0_f32..1.0, 3), n)
        }),
        at_most in 0.0..2.0_f64,
    ) {
        let n = states.len();
        let (products, times) = (products_of(&states), times(n));
        let linear = forecasts(&products, &times, ForecastOrder::Linear);
        let worst = |plan: &SharingPlan| linear.errors(plan).unwrap().into_iter().fold(0.0, f64::max);
        let fewest = |meets: &dyn Fn(&SharingPlan) -> bool| {
            let plans = all_plans(n, n).filter(|plan| meets(plan));
            plans.map(|plan| (plan.num_recompute(), linear.units(&plan).unwrap())).min().unwrap()
        };
        let cost_of = |it: &PlanWithCost| (it.plan.num_recompute(), linear.units(&it.plan).unwrap());

        let found = forecast_plan_with_worst_error(&linear, at_most).unwrap();
        prop_assert!(worst(&found.plan) <= at_most);
        prop_assert_eq!(cost_of(&found), fewest(&|plan| worst(plan) <= at_most));
        let found = forecast_plan_with_mean_error(&linear, at_most).unwrap();
        prop_assert_eq!(cost_of(&found), fewest(&|plan| linear.cost(plan).unwrap() / n as f64 <= at_most));

        let quadratic = forecasts(&products, &times, ForecastOrder::Quadratic);
        let planner = ForecastPlanner::new(&quadratic, n).unwrap();
        for num_recompute in 1..=n {
            let uniform = SharingPlan::uniform_budget(n, num_recompute).unwrap();
            prop_assert!(planner.plan(num_recompute).unwrap().cost <= quadratic.cost(&uniform).unwrap());
        }
        let found = forecast_plan_with_worst_error(&quadratic, at_most).unwrap();
        prop_assert!(quadratic.errors(&found.plan).unwrap().into_iter().all(|it| it <= at_most));
    }
}

#[test]
fn long_grids_are_planned_and_beat_uniform_spacing() {
    let (n, times) = (250, times(250));
    let products = products_of(&smooth(n));
    for order in [ForecastOrder::Linear, ForecastOrder::Quadratic] {
        let forecasts = forecasts(&products, &times, order);
        let planner = ForecastPlanner::new(&forecasts, 50).unwrap();
        assert_eq!((planner.min_budget(), planner.max_budget()), (4, 50));
        for num_recompute in [4, 8, 20, 50] {
            let found = planner.plan(num_recompute).unwrap();
            assert_eq!((found.plan.num_recompute(), found.plan.order()), (num_recompute, order));
            assert!(found.plan.segments().all(|(a, b)| b - a <= MAX_SEGMENT));
            let uniform = SharingPlan::uniform_budget(n, num_recompute).unwrap();
            let ratio = found.cost / forecasts.cost(&uniform).unwrap();
            // Four segments of at most 64 steps leave little choice.
            let expected = if num_recompute == 4 { 1.0 } else { 0.7 };
            assert!(ratio <= expected, "order {order}, {num_recompute} recomputes: {ratio}");
        }
        let message = planner.plan(3).unwrap_err().to_string();
        assert!(message.contains("in 4..=50, got 3"), "{message}");
    }
}

#[test]
fn arguments_are_checked() {
    let (products, good) = (products_of(&smooth(4)), times(4));
    for bad in [&good[..4], &[0.0, 0.1, 0.1, 0.5, 1.0], &[0.0, 0.1, f64::NAN, 0.5, 1.0], &[0.0, 1.0]] {
        let refused = Forecasts::new(&products, bad, ForecastOrder::Linear).unwrap_err().to_string();
        assert!(refused.contains("times"), "{refused}");
    }
    let linear = forecasts(&products, &good, ForecastOrder::Linear);
    let other = SharingPlan::every_step(5).unwrap();
    assert!(linear.cost(&other).is_err() && linear.errors(&other).is_err());
    for num_recompute in [0, 5, usize::MAX] {
        assert!(forecast_plan(&linear, num_recompute).unwrap_err().to_string().contains("in 1..=4"));
    }
    for bound in [-0.1, f64::NAN, f64::INFINITY] {
        for plan in [forecast_plan_with_mean_error, forecast_plan_with_worst_error] {
            assert!(plan(&linear, bound).unwrap_err().to_string().contains("bound on the error"));
        }
    }
    let reuse = forecasts(&products, &good, ForecastOrder::Reuse);
    assert!(forecast_plan(&reuse, 2).unwrap_err().to_string().contains("optimal_plan"));
}

#[test]
fn guidance_weighs_the_steps_it_acts_on() {
    let (n, states, times) = (8, smooth(8), times(8));
    let products = products_of(&states);
    let plain = || forecasts(&products, &times, ForecastOrder::Linear);
    let plan = SharingPlan::new(vec![0, 3, 5], n).unwrap();
    let (errors, mut factors) = (plain().errors(&plan).unwrap(), [1.0; 8]);
    assert_eq!(plain().with_guidance(&factors).unwrap().cost(&plan).unwrap(), plain().cost(&plan).unwrap());
    factors[..4].fill(30.0);
    let guided = plain().with_guidance(&factors).unwrap();
    assert_eq!(guided.errors(&plan).unwrap(), errors);
    let weights: Vec<f64> = (0..n).map(|i| factors[i] * (times[i + 1] - times[i])).collect();
    let mean = weights.iter().sum::<f64>() / n as f64;
    let wanted: f64 = errors.iter().zip(&weights).map(|(error, weight)| error * weight / mean).sum();
    assert!((guided.cost(&plan).unwrap() - wanted).abs() < 1e-9 * wanted);
    let best = |it: &Forecasts<'_>| forecast_plan(it, 3).unwrap().plan.recompute_steps()[1];
    assert!(best(&guided) < best(&plain()), "{} {}", best(&guided), best(&plain()));

    for bad in [&[1.0; 7][..], &[0.0; 8], &[f64::NAN; 8]] {
        let refused = plain().with_guidance(bad).unwrap_err().to_string();
        assert!(refused.contains("guidance factor"), "{refused}");
    }
}
