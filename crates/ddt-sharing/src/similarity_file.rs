//! Similarity files: a measurement, and what it was made on.
//!
//! Measuring takes minutes of sampling and planning takes milliseconds, so it is the similarity that is
//! worth keeping: every plan can be made from it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::document::DocumentKind;
use crate::plan::check_step_count;
use crate::{PlanError, PlanFor, Similarity};

const KIND: DocumentKind =
    DocumentKind { format: "ddt-similarity", version: 1, max_bytes: 128 * 1024 * 1024 };

/// A similarity as it is kept on disk, in JSON; every bit of it survives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimilarityFile {
    /// The model and sampler settings that were measured.
    pub made_for: PlanFor,
    /// Seed of the sampled images.
    pub seed: u64,
    /// Number of sampled images.
    pub images: usize,
    /// The measurement.
    pub similarity: Similarity,
}

impl SimilarityFile {
    /// Reads a similarity file.
    ///
    /// # Errors
    ///
    /// Those of [`PlanFile::load`](crate::PlanFile::load); the largest file is 128 MiB.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, PlanError> {
        let path = path.as_ref();
        let file: Self = KIND.load(path)?;
        match file.validate() {
            Ok(()) => Ok(file),
            Err(source) => Err(PlanError::Contents { path: path.to_owned(), source: Box::new(source) }),
        }
    }

    /// Writes a similarity file, replacing any file at `path` as a whole.
    ///
    /// # Errors
    ///
    /// Errors of [`SimilarityFile::validate`]; [`PlanError::TooLarge`] or [`PlanError::Io`], after
    /// which `path` is whole: as it was before, or replaced.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), PlanError> {
        self.validate()?;
        KIND.save(path.as_ref(), self)
    }

    /// Refuses to serve a sampler with other settings than were measured.
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
    /// [`PlanError::StepCount`] for a similarity of another number of steps than the grid;
    /// [`PlanError::Field`] for no images; errors of [`PlanFor::validate`].
    pub fn validate(&self) -> Result<(), PlanError> {
        self.made_for.validate()?;
        check_step_count("the similarity", self.made_for.grid.num_steps, self.similarity.num_steps())?;
        if self.images == 0 {
            return Err(PlanError::Field { field: "images", expected: "at least 1", got: "0".to_owned() });
        }
        Ok(())
    }
}
