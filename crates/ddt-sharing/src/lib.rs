//! Where a DDT sampler recomputes its self-condition.
//!
//! Neighbouring sampling steps have nearly equal self-conditions `z_t`, so a sampler may keep one for
//! several steps and skip the condition encoder (arXiv:2504.05741, Sec. 3.4, eq. 6). This crate measures
//! how alike the steps are and picks the steps worth recomputing. It knows numbers, not tensors.
//!
//! How the nouns meet:
//!
//! - [`SimilarityAccumulator`] takes the self-conditions of unshared sampling, one image at a time, and
//!   gives a [`Similarity`]: the mean cosine between every two steps.
//! - [`Planner`] turns a similarity into the cheapest [`SharingPlan`] of every budget in one run
//!   (eqs. 7 and 8); [`optimal_plan`] is the same for one budget.
//! - [`plan_with_mean_similarity`] and [`plan_with_worst_similarity`] find the budget from a bound.
//! - [`predicted_speedup`] says what a plan saves, from a network's [`OperationCounts`].
//! - A plan is only good for what it was measured on: a [`StepGrid`] and [`PlanFor`] say what that was,
//!   and [`PlanFile`] and [`SimilarityFile`] keep it on disk beside the numbers.
//!
//! Planner formulas use `N` steps and `K` recomputes. Everything is computed in f64, and no result depends
//! on the number of threads.
//!
//! ```
//! use ddt_sharing::{SharingPlan, Similarity, SimilarityAccumulator, optimal_plan, plan_cost};
//!
//! // Four steps, one token of two channels: the state turns by a right angle between steps 2 and 3.
//! let states = [vec![1.0_f32, 0.0], vec![1.0, 0.1], vec![1.0, 0.0], vec![0.0, 1.0]];
//! let mut statistic = SimilarityAccumulator::new(4)?;
//! statistic.add(&states, 2)?;
//! let similarity: Similarity = statistic.finish()?;
//!
//! let best = optimal_plan(&similarity, 2)?;
//! assert_eq!(best.plan.recompute_steps(), [0, 3]);
//! assert!(best.cost < plan_cost(&similarity, &SharingPlan::uniform(4, 2)?)?);
//! # Ok::<(), ddt_sharing::PlanError>(())
//! ```

#![forbid(unsafe_code)]

mod accumulator;
mod document;
mod error;
mod gram;
mod optimal;
mod plan;
mod plan_file;
mod plan_for;
mod quality;
mod similarity;
mod similarity_file;
mod speedup;
mod step_grid;

pub use accumulator::SimilarityAccumulator;
pub use error::PlanError;
pub use optimal::{PlanWithCost, Planner, optimal_plan, plan_cost};
pub use plan::{MAX_STEPS, SharingPlan, budget_for_ratio};
pub use plan_file::{Objective, PlanFile};
pub use plan_for::{PlanFor, PlanGuidance};
pub use quality::{mean_similarity, plan_with_mean_similarity, plan_with_worst_similarity, worst_similarity};
pub use similarity::{MAX_SIMILARITY_STEPS, Similarity};
pub use similarity_file::SimilarityFile;
pub use speedup::{OperationCounts, predicted_speedup, predicted_speedup_guided};
pub use step_grid::StepGrid;
