#![doc = include_str!("../README.md")]
//!
//! # Contents
//!
//! - [`SimilarityAccumulator`] takes the self-conditions of unshared sampling, one image at a time, and
//!   computes their [`Similarity`] (mean cosines) and [`InnerProducts`].
//! - Reuse: [`Planner`] turns a similarity into the cheapest [`SharingPlan`] of every budget (eqs. 7 and 8);
//!   [`optimal_plan`] does so for one budget, [`plan_with_mean_similarity`] and [`plan_with_worst_similarity`]
//!   find the budget from a bound.
//! - Forecasts: [`ForecastPlanner`] and [`forecast_plan`] do the same for a [`ForecastOrder`] above 0, from the
//!   errors that [`Forecasts`] computes from inner products; [`forecast_weights`] is the extrapolation itself.
//! - [`OrderPlanner`] makes plans of any order.
//! - [`predicted_speedup`] predicts the gain from a network's [`OperationCounts`].
//! - A plan is only good for the settings it was measured with: [`MadeFor`] holds them, [`PlanFile`] and
//!   [`SimilarityFile`] keep them beside the numbers.
//!
//! Formulas use `N` steps and `K` recomputes. Everything is computed in f64, and no result depends on the
//! number of threads.

#![forbid(unsafe_code)]

mod any_order;
mod cost;
mod error;
mod files;
mod forecast;
mod made_for;
mod optimal;
mod plan;
mod similarity;
mod speedup;
mod statistic;

pub use any_order::OrderPlanner;
pub use cost::PlanWithCost;
pub use error::PlanError;
pub use files::{Objective, PlanFile, SimilarityFile};
pub use forecast::{
    ForecastPlanner, Forecasts, MAX_SEGMENT, forecast_plan, forecast_plan_with_mean_error,
    forecast_plan_with_worst_error, forecast_weights,
};
pub use made_for::MadeFor;
pub use optimal::{
    Planner, mean_similarity, optimal_plan, plan_cost, plan_with_mean_similarity, plan_with_worst_similarity,
    worst_similarity,
};
pub use plan::{ForecastOrder, MAX_STEPS, SharingPlan, budget_for_ratio};
pub use similarity::{InnerProducts, MAX_SIMILARITY_STEPS, Similarity};
pub use speedup::{OperationCounts, predicted_speedup, predicted_speedup_guided};
pub use statistic::SimilarityAccumulator;
