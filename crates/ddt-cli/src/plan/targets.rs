//! Plans from a measurement: the best plan for each budget, and the evenly spaced one with as many recomputes.

use std::fmt;

use anyhow::{Result, bail};
use ddt::{
    flow::{Guidance, TimeGrid},
    sharing::{
        ForecastOrder, MadeFor, Objective, OperationCounts, OrderPlanner, PlanFile, PlanWithCost,
        SharingPlan, SimilarityFile, forecast_plan_with_mean_error, forecast_plan_with_worst_error,
        plan_with_mean_similarity, plan_with_worst_similarity, predicted_speedup_guided,
    },
};
use ddt_plot::{LinePlot, Series};
use serde::Serialize;

/// Goal of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// This share of the steps skips the encoder, in [0, 1).
    Ratio(f64),
    /// The mean similarity is at least this, in (0, 1].
    Quality(f64),
    /// The similarity at every step is at least this, in (0, 1].
    WorstQuality(f64),
    /// The mean error of the forecasts is at most this.
    Error(f64),
    /// The error of the forecast at every step is at most this.
    WorstError(f64),
}

impl Target {
    /// Whether plans of this order can have the goal: similarities are of reuse, errors of forecasts.
    pub(crate) fn is_for(self, order: ForecastOrder) -> bool {
        match self {
            Self::Ratio(_) => true,
            Self::Quality(_) | Self::WorstQuality(_) => order == ForecastOrder::Reuse,
            Self::Error(_) | Self::WorstError(_) => order != ForecastOrder::Reuse,
        }
    }
}

/// The form used in the name of the plan file.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ratio(ratio) => write!(f, "{ratio}"),
            Self::Quality(at_least) => write!(f, "quality-{at_least}"),
            Self::WorstQuality(at_least) => write!(f, "worst-{at_least}"),
            Self::Error(at_most) => write!(f, "error-{at_most}"),
            Self::WorstError(at_most) => write!(f, "worst-error-{at_most}"),
        }
    }
}

/// The best plan for a goal.
fn best(planner: &OrderPlanner<'_>, target: Target) -> Result<PlanWithCost> {
    Ok(match (planner, target) {
        (_, Target::Ratio(ratio)) => planner.plan(planner.budget_for_ratio(ratio))?,
        (OrderPlanner::Reuse(similarity, _), Target::Quality(at_least)) => {
            plan_with_mean_similarity(similarity, at_least)?
        }
        (OrderPlanner::Reuse(similarity, _), Target::WorstQuality(at_least)) => {
            plan_with_worst_similarity(similarity, at_least)?
        }
        (OrderPlanner::Forecast(forecasts, _), Target::Error(at_most)) => {
            forecast_plan_with_mean_error(forecasts, at_most)?
        }
        (OrderPlanner::Forecast(forecasts, _), Target::WorstError(at_most)) => {
            forecast_plan_with_worst_error(forecasts, at_most)?
        }
        (_, target) => bail!("plans of order {} have no goal {target}", planner.order()),
    })
}

/// The two plans of one target, with equally many recomputes.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    /// The goal.
    pub(crate) target: Target,
    /// Segments as even as can be.
    pub(crate) uniform: PlanWithCost,
    /// The least cost.
    pub(crate) optimal: PlanWithCost,
}

impl Planned {
    /// Plans for one target.
    ///
    /// # Errors
    /// A target outside its range, or more steps than a plan can have.
    pub(crate) fn new(target: Target, planner: &OrderPlanner<'_>) -> Result<Self> {
        let optimal = best(planner, target)?;
        Ok(Self { target, uniform: planner.uniform(optimal.plan.num_recompute())?, optimal })
    }

    /// The file of the best plan.
    ///
    /// # Errors
    /// Those of [`Speed::predict`].
    pub(crate) fn file(&self, measured: &SimilarityFile, speed: &Speed) -> Result<PlanFile> {
        let optimal = &self.optimal;
        let objective = match self.target {
            Target::Ratio(_) => Objective::Budget { num_recompute: optimal.plan.num_recompute() },
            Target::Quality(at_least) => Objective::MeanSimilarity { at_least },
            Target::WorstQuality(at_least) => Objective::WorstSimilarity { at_least },
            Target::Error(at_most) => Objective::MeanError { at_most },
            Target::WorstError(at_most) => Objective::WorstError { at_most },
        };
        let mut file = PlanFile::new(measured, objective, optimal.clone());
        file.predicted_speedup = Some(speed.predict(&optimal.plan)?);
        Ok(file)
    }
}

/// Inputs of the predicted speed-up.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Speed {
    /// Operations of the network's parts, for one row at one step (FLOP).
    pub(crate) operations: OperationCounts,
    /// Whether each step is guided.
    pub(crate) guided: Vec<bool>,
}

impl Speed {
    /// Predicted speed-up: operations of sampling without `plan` over those with it.
    ///
    /// # Errors
    /// A plan of another number of steps.
    pub(crate) fn predict(&self, plan: &SharingPlan) -> Result<f64> {
        Ok(predicted_speedup_guided(plan, &self.operations, &self.guided)?)
    }
}

/// Cost against the number of recomputes, even and best, as the text of an SVG file.
///
/// # Errors
/// None in practice: every budget up to the number of steps has both plans.
pub(crate) fn cost_plot(measured: &SimilarityFile, planner: &OrderPlanner<'_>) -> Result<String> {
    let num_steps = measured.similarity.num_steps();
    let mut uniform = Vec::with_capacity(num_steps);
    let mut optimal = Vec::with_capacity(num_steps);
    for num_recompute in planner.budgets() {
        uniform.push((num_recompute as f64, planner.uniform(num_recompute)?.cost));
        optimal.push((num_recompute as f64, planner.plan(num_recompute)?.cost));
    }
    // Down to a cost of 0, which a logarithmic axis leaves out.
    let log_y = uniform.iter().any(|(_, cost)| *cost > 0.0);
    let series = [
        Series { name: "uniform".to_owned(), points: uniform },
        Series { name: "optimal".to_owned(), points: optimal },
    ];
    let plot = LinePlot {
        title: &format!(
            "Cost of sharing of order {}, {}",
            planner.order(),
            settings_line(&measured.made_for)
        ),
        x_label: &format!("runs of the condition encoder in {num_steps} steps"),
        y_label: match planner {
            OrderPlanner::Reuse(..) => "cost (summed dissimilarity)",
            OrderPlanner::Forecast(..) => "cost (summed relative error)",
        },
        log_y,
        series: &series,
    };
    Ok(plot.svg())
}

/// The sampler in one line.
pub(crate) fn settings_line(made_for: &MadeFor) -> String {
    let steps = made_for.setting("grid").map_or(0, |grid: TimeGrid| grid.num_steps());
    let guidance = made_for.setting("guidance").unwrap_or(Guidance::none());
    let (low, high) = guidance.interval();
    let solver = made_for.setting("solver").unwrap_or("any solver".to_owned());
    format!("{steps} x {solver}, guidance {} in ({low}, {high})", guidance.scale())
}

#[cfg(test)]
mod tests {
    use ddt::sharing::{InnerProducts, Planner, Similarity};

    use super::*;

    /// Six steps of which the later ones change faster.
    fn measured() -> SimilarityFile {
        let angles = [0.0, 0.05, 0.1, 0.2, 0.5, 1.0_f64];
        let values: Vec<f64> =
            angles.iter().flat_map(|a| angles.iter().map(move |b| (a - b).cos())).collect();
        let made_for = MadeFor::new("m").with("grid", &grid()).unwrap();
        let guidance = Guidance::new(2.0, (0.3, 1.0)).unwrap();
        let made_for = made_for.with("guidance", &guidance).unwrap().with("solver", &"euler").unwrap();
        SimilarityFile {
            made_for,
            seed: 1,
            images: 2,
            similarity: Similarity::from_matrix(values.clone(), 6).unwrap(),
            inner_products: Some(InnerProducts::from_matrix(values, 6).unwrap()),
        }
    }

    fn grid() -> TimeGrid {
        TimeGrid::new(6, Some(0.04), 1.0).unwrap()
    }

    fn planned(order: usize, target: Target) -> Result<Planned> {
        let (measured, grid) = (measured(), grid());
        Planned::new(target, &OrderPlanner::new(&measured, grid.times(), &[1.0; 6], order.try_into()?)?)
    }

    #[test]
    fn ratios_fix_the_budget_of_both_plans() {
        let it = planned(0, Target::Ratio(0.5)).unwrap();
        assert_eq!(it.uniform.plan.recompute_steps(), [0, 2, 4]);
        assert_eq!(it.optimal.plan.recompute_steps(), [0, 4, 5]);
        assert!(it.optimal.cost < it.uniform.cost);
        for order in [1, 2] {
            let it = planned(order, Target::Ratio(0.5)).unwrap();
            assert_eq!(it.optimal.plan.num_recompute(), 3);
            for plan in [&it.uniform.plan, &it.optimal.plan] {
                assert_eq!(usize::from(plan.order()), order);
            }
            assert!(order == 2 || it.optimal.cost <= it.uniform.cost);
        }
    }

    #[test]
    fn qualities_find_the_budget() {
        let it = planned(0, Target::Quality(0.99)).unwrap();
        assert!(it.optimal.mean_similarity() >= 0.99);
        let fewer = it.optimal.plan.num_recompute() - 1;
        let measured = measured();
        let planner = Planner::new(&measured.similarity, 6).unwrap();
        assert!(planner.plan(fewer).unwrap().mean_similarity() < 0.99);
        assert_eq!(it.uniform.plan.num_recompute(), fewer + 1);
        assert_eq!(planned(0, Target::Quality(1.0)).unwrap().optimal.plan.num_recompute(), 6);
        // cos(0.5) is below 0.95, cos(0.3) is above.
        let worst = planned(0, Target::WorstQuality(0.95)).unwrap();
        assert_eq!(worst.optimal.plan.recompute_steps(), [0, 4, 5]);
    }

    #[test]
    fn errors_find_the_budget() {
        for order in [1, 2] {
            let it = planned(order, Target::Error(0.05)).unwrap();
            assert!(it.optimal.mean_error() <= 0.05 && it.optimal.plan.num_recompute() < 6);
            assert_eq!(planned(order, Target::WorstError(0.0)).unwrap().optimal.plan.num_recompute(), 6);
        }
    }

    #[test]
    fn goals_are_of_reuse_or_of_forecasts() {
        for target in [Target::Ratio(0.5), Target::Quality(0.9), Target::WorstError(0.1), Target::Error(0.1)]
        {
            for order in [0, 1, 2] {
                assert_eq!(
                    planned(order, target).is_ok(),
                    target.is_for(order.try_into().unwrap()),
                    "{target}"
                );
            }
        }
    }

    #[test]
    fn files_say_what_was_asked_and_what_it_saves() {
        let operations = OperationCounts { encoder: 6.0, decoder: 4.0, decoder_cached: 3.0 };
        let speed = Speed { operations, guided: vec![false, false, true, true, true, true] };
        for (order, target) in [
            (0, Target::Ratio(0.5)),
            (0, Target::Quality(0.9)),
            (0, Target::WorstQuality(0.9)),
            (1, Target::Error(0.1)),
        ] {
            let it = planned(order, target).unwrap();
            let file = it.file(&measured(), &speed).unwrap();
            file.validate().unwrap();
            assert!(file.predicted_speedup > Some(1.0));
            assert_eq!((file.seed, file.images), (1, 2));
            assert_eq!(file.plan_for(&measured().made_for).unwrap(), &it.optimal.plan);
        }
    }

    #[test]
    fn plots_have_both_curves() {
        let (measured, grid) = (measured(), grid());
        for order in [ForecastOrder::Reuse, ForecastOrder::Linear] {
            let planner = OrderPlanner::new(&measured, grid.times(), &[1.0; 6], order).unwrap();
            let svg = cost_plot(&measured, &planner).unwrap();
            for text in ["uniform", "optimal", "6 x euler, guidance 2", "runs of the condition encoder"] {
                assert!(svg.contains(text), "{text}");
            }
        }
    }
}
