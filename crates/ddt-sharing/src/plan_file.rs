//! Plan files: a plan, what it is for, and how it was made.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::document::DocumentKind;
use crate::plan::check_step_count;
use crate::step_grid::nearly_equal;
use crate::{PlanError, PlanFor, SharingPlan};

const KIND: DocumentKind =
    DocumentKind { format: "ddt-sharing-plan", version: 1, max_bytes: 16 * 1024 * 1024 };

/// What the plan was asked to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Objective {
    /// Least cost with exactly this many recomputes.
    Budget {
        /// Number of recomputes `K`.
        num_recompute: usize,
    },
    /// Fewest recomputes with a mean similarity of at least this.
    MeanSimilarity {
        /// The bound, in [-1, 1].
        at_least: f64,
    },
    /// Fewest recomputes with a similarity of at least this at every step.
    WorstSimilarity {
        /// The bound, in [-1, 1].
        at_least: f64,
    },
    /// A recompute at every so manieth step.
    Uniform {
        /// Steps from one recompute to the next.
        every: usize,
    },
}

/// A plan as it is kept on disk, in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    /// The model and sampler settings that the plan is good for.
    pub made_for: PlanFor,
    /// Seed of the images that the similarity was measured on.
    pub seed: u64,
    /// Number of images that the similarity was measured on.
    pub images: usize,
    /// What the plan was asked to be.
    pub objective: Objective,
    /// The plan; after loading it always names the grid of `made_for`.
    pub plan: SharingPlan,
    /// Sum over all steps of the dissimilarity between the state used and the step's own (unitless).
    pub cost: f64,
    /// `1 - cost / N`.
    pub mean_similarity: f64,
    /// How many times fewer operations the plan needs than no sharing, if it was predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_speedup: Option<f64>,
}

impl PlanFile {
    /// Reads a plan file.
    ///
    /// # Errors
    ///
    /// [`PlanError::Io`], [`PlanError::NotAFile`], [`PlanError::TooLarge`] (above 16 MiB),
    /// [`PlanError::Format`], [`PlanError::Version`], [`PlanError::Malformed`] (unknown keys included) or
    /// [`PlanError::Contents`] for a file that contradicts itself; each names the file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, PlanError> {
        let path = path.as_ref();
        let file: Self = KIND.load(path)?;
        file.on_its_grid()
            .map_err(|source| PlanError::Contents { path: path.to_owned(), source: Box::new(source) })
    }

    /// Writes a plan file, replacing any file at `path` as a whole.
    ///
    /// # Errors
    ///
    /// Errors of [`PlanFile::validate`]; [`PlanError::TooLarge`] or [`PlanError::Io`], after
    /// which `path` is whole: as it was before, or replaced.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), PlanError> {
        KIND.save(path.as_ref(), &self.clone().on_its_grid()?)
    }

    /// Refuses to serve a sampler with other settings than the plan was made for.
    ///
    /// # Errors
    ///
    /// Those of [`PlanFor::check`], naming both sides.
    pub fn check(&self, wanted: &PlanFor) -> Result<(), PlanError> {
        self.made_for.check(wanted)
    }

    /// Checks that the parts agree with each other.
    ///
    /// # Errors
    ///
    /// [`PlanError::StepCount`] or [`PlanError::WrongGrid`] for a plan on another grid than `made_for`'s;
    /// [`PlanError::Field`] for a number that cannot be; errors of [`PlanFor::validate`].
    pub fn validate(&self) -> Result<(), PlanError> {
        self.made_for.validate()?;
        check_step_count("the plan", self.made_for.grid.num_steps, self.plan.num_steps())?;
        if self.plan.grid().is_some() {
            self.plan.check_grid(&self.made_for.grid)?;
        }
        let num_steps = self.plan.num_steps() as f64;
        let refuse = |field, expected, got: String| Err(PlanError::Field { field, expected, got });
        if self.images == 0 {
            return refuse("images", "at least 1", "0".to_owned());
        }
        if !(0.0..=2.0 * num_steps).contains(&self.cost) {
            return refuse("cost", "between 0 and twice the number of steps", self.cost.to_string());
        }
        if !nearly_equal(self.mean_similarity + 1.0, 2.0 - self.cost / num_steps) {
            return refuse("mean_similarity", "1 - cost / number of steps", self.mean_similarity.to_string());
        }
        match self.predicted_speedup {
            Some(it) if !(it > 0.0 && it.is_finite()) => {
                refuse("predicted_speedup", "finite and above 0", it.to_string())
            }
            _ => self.validate_objective(),
        }
    }

    fn validate_objective(&self) -> Result<(), PlanError> {
        let (field, expected) = match self.objective {
            Objective::Budget { num_recompute } if num_recompute != self.plan.num_recompute() => {
                ("objective", "the plan's number of recomputes")
            }
            Objective::MeanSimilarity { at_least } | Objective::WorstSimilarity { at_least }
                if !(-1.0..=1.0).contains(&at_least) =>
            {
                ("objective", "a similarity in [-1, 1]")
            }
            Objective::Uniform { every: 0 } => ("objective", "a recompute every 1st, 2nd, ... step"),
            _ => return Ok(()),
        };
        Err(PlanError::Field { field, expected, got: format!("{:?}", self.objective) })
    }

    /// Validates, and lets the plan name the grid it was made for.
    fn on_its_grid(self) -> Result<Self, PlanError> {
        self.validate()?;
        Ok(Self { plan: self.plan.on_grid(self.made_for.grid)?, ..self })
    }
}
