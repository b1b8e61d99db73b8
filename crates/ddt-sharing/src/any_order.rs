//! Plans of any order, by the programme that fits it.

use std::ops::RangeInclusive;

use crate::cost::PlanWithCost;
use crate::error::PlanError;
use crate::files::SimilarityFile;
use crate::forecast::{ForecastPlanner, Forecasts};
use crate::optimal::{Planner, plan_cost};
use crate::plan::{ForecastOrder, SharingPlan, budget_for_ratio};
use crate::similarity::Similarity;

/// Cheapest plans of all budgets for one order: the paper's programme for reuse, the one over pairs of recomputes for
/// forecasts.
#[derive(Debug, Clone)]
pub enum OrderPlanner<'a> {
    /// Order 0.
    Reuse(&'a Similarity, Planner),
    /// Orders 1 and 2.
    Forecast(Forecasts<'a>, ForecastPlanner<'a>),
}

impl<'a> OrderPlanner<'a> {
    /// For a measurement on a grid of `N` steps, its `N + 1` `times`, and the factors by which guidance enlarges errors
    /// of the velocity at each step, which the paper's programme does not use.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] for more steps than a plan can have, for times or factors of another grid, and for
    /// forecasts from a measurement without inner products.
    pub fn new(
        measured: &'a SimilarityFile,
        times: &'a [f64],
        factors: &[f64],
        order: ForecastOrder,
    ) -> Result<Self, PlanError> {
        let num_steps = measured.similarity.num_steps();
        if order == ForecastOrder::Reuse {
            return Ok(Self::Reuse(&measured.similarity, Planner::new(&measured.similarity, num_steps)?));
        }
        let Some(products) = &measured.inner_products else {
            return Err(PlanError::invalid(
                "a measurement",
                "one with inner products, for forecasts",
                "none",
            ));
        };
        let forecasts = Forecasts::new(products, times, order)?.with_guidance(factors)?;
        let planner = ForecastPlanner::new(&forecasts, num_steps)?;
        Ok(Self::Forecast(forecasts, planner))
    }

    /// The order of the plans.
    pub fn order(&self) -> ForecastOrder {
        match self {
            Self::Reuse(..) => ForecastOrder::Reuse,
            Self::Forecast(forecasts, _) => forecasts.order(),
        }
    }

    /// Numbers of recomputes that there are plans of.
    pub fn budgets(&self) -> RangeInclusive<usize> {
        match self {
            Self::Reuse(_, planner) => 1..=planner.max_budget(),
            Self::Forecast(_, planner) => planner.min_budget()..=planner.max_budget(),
        }
    }

    /// The budget of a sharing ratio in [0, 1): at least the smallest there is.
    pub fn budget_for_ratio(&self, ratio: f64) -> usize {
        let budgets = self.budgets();
        budget_for_ratio(*budgets.end(), ratio).max(*budgets.start())
    }

    /// The cheapest plan of a number of recomputes.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] outside [`budgets`](Self::budgets).
    pub fn plan(&self, num_recompute: usize) -> Result<PlanWithCost, PlanError> {
        match self {
            Self::Reuse(_, planner) => planner.plan(num_recompute),
            Self::Forecast(_, planner) => planner.plan(num_recompute),
        }
    }

    /// The plan whose segments differ by at most one step.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] for no recompute, and for more than there are steps.
    pub fn uniform(&self, num_recompute: usize) -> Result<PlanWithCost, PlanError> {
        let plan = |num_steps| SharingPlan::uniform_budget(num_steps, num_recompute);
        match self {
            Self::Reuse(similarity, _) => {
                let plan = plan(similarity.num_steps())?;
                Ok(PlanWithCost { cost: plan_cost(similarity, &plan)?, plan })
            }
            Self::Forecast(forecasts, _) => {
                let plan = plan(forecasts.num_steps())?.with_order(forecasts.order());
                Ok(PlanWithCost { cost: forecasts.cost(&plan)?, plan })
            }
        }
    }
}
