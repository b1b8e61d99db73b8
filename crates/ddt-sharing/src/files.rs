//! Plans and measurements as JSON, with the settings they were made with.
//!
//! Measuring takes minutes of sampling, planning takes less than a second: every plan can be made from a saved
//! measurement. The JSON names its format and version; whoever writes it to disk should do so atomically.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::cost::PlanWithCost;
use crate::error::PlanError;
use crate::made_for::{MadeFor, nearly_equal};
use crate::plan::{ForecastOrder, SharingPlan};
use crate::similarity::{InnerProducts, Similarity};

const PLAN: Format = Format { name: "ddt-sharing-plan", version: 1, max_bytes: 16 << 20 };
const SIMILARITY: Format = Format { name: "ddt-similarity", version: 1, max_bytes: 256 << 20 };

/// A measurement as it is kept on disk in JSON, without loss of a bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimilarityFile {
    /// The model and sampler settings that were measured.
    pub made_for: MadeFor,
    /// Seed of the sampled images.
    pub seed: u64,
    /// Number of sampled images.
    pub images: usize,
    /// Mean cosines, for plans that reuse.
    pub similarity: Similarity,
    /// Mean inner products, for plans that forecast; files of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner_products: Option<InnerProducts>,
}

impl SimilarityFile {
    /// Largest size of a similarity file.
    pub const MAX_JSON_BYTES: u64 = SIMILARITY.max_bytes;

    /// Reads the content of a similarity file.
    ///
    /// # Errors
    /// Those of [`PlanFile::from_json`].
    pub fn from_json(json: &[u8]) -> Result<Self, PlanError> {
        let file: Self = SIMILARITY.read(json)?;
        file.validate()?;
        Ok(file)
    }

    /// Content of a similarity file.
    ///
    /// # Errors
    /// Errors of [`validate`](Self::validate), and a file above [`MAX_JSON_BYTES`](Self::MAX_JSON_BYTES).
    pub fn to_json(&self) -> Result<String, PlanError> {
        self.validate()?;
        SIMILARITY.write(self)
    }

    /// Refuses a sampler with other settings than were measured.
    ///
    /// # Errors
    /// Those of [`MadeFor::check`], naming both sides.
    pub fn check(&self, wanted: &MadeFor) -> Result<(), PlanError> {
        self.made_for.check(wanted)
    }

    /// Checks that the parts agree with each other.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] for matrices of another number of steps than the time grid, and for no images.
    pub fn validate(&self) -> Result<(), PlanError> {
        self.made_for.validate(self.similarity.num_steps())?;
        if let Some(products) = &self.inner_products {
            PlanError::check_steps("inner products", self.similarity.num_steps(), products.num_steps())?;
        }
        if self.images == 0 {
            return Err(PlanError::invalid("images", "at least 1", 0));
        }
        Ok(())
    }
}

/// Requirement that a plan was made to meet.
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
    /// Fewest recomputes whose forecasts have at most this mean error.
    MeanError {
        /// The bound on the relative error, at least 0.
        at_most: f64,
    },
    /// Fewest recomputes whose forecasts have at most this error at every step.
    WorstError {
        /// The bound on the relative error, at least 0.
        at_most: f64,
    },
    /// A recompute at every n-th step.
    Uniform {
        /// Steps from one recompute to the next.
        every: usize,
    },
}

/// A plan with its provenance, as it is kept on disk in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    /// The model and sampler settings of the measurement.
    pub made_for: MadeFor,
    /// Seed of the measured images.
    pub seed: u64,
    /// Number of measured images.
    pub images: usize,
    /// Requirement that the plan meets.
    pub objective: Objective,
    // Private: `plan_for` hands it out only to a sampler with the settings of `made_for`.
    plan: SharingPlan,
    /// Sum over all steps of the error of the self-condition in use (unitless): its dissimilarity where the
    /// plan reuses, its relative error where the plan forecasts.
    pub cost: f64,
    /// `1 - cost / N`, for a plan that reuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_similarity: Option<f64>,
    /// Predicted speed-up by operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_speedup: Option<f64>,
}

impl PlanFile {
    /// Largest size of a plan file.
    pub const MAX_JSON_BYTES: u64 = PLAN.max_bytes;

    /// The file of a plan made from a measurement.
    pub fn new(measured: &SimilarityFile, objective: Objective, best: PlanWithCost) -> Self {
        let reuses = best.plan.order() == ForecastOrder::Reuse;
        Self {
            made_for: measured.made_for.clone(),
            seed: measured.seed,
            images: measured.images,
            objective,
            cost: best.cost,
            mean_similarity: reuses.then(|| best.mean_similarity()),
            plan: best.plan,
            predicted_speedup: None,
        }
    }

    /// Reads the content of a plan file.
    ///
    /// # Errors
    /// [`PlanError::Malformed`] for anything but JSON of this structure (unknown keys included);
    /// [`PlanError::Invalid`] for a file of another format or version, one above
    /// [`MAX_JSON_BYTES`](Self::MAX_JSON_BYTES), and one that contradicts itself.
    pub fn from_json(json: &[u8]) -> Result<Self, PlanError> {
        let file: Self = PLAN.read(json)?;
        file.validate()?;
        Ok(file)
    }

    /// Content of a plan file.
    ///
    /// # Errors
    /// Errors of [`validate`](Self::validate), and a file above [`MAX_JSON_BYTES`](Self::MAX_JSON_BYTES).
    pub fn to_json(&self) -> Result<String, PlanError> {
        self.validate()?;
        PLAN.write(self)
    }

    /// The plan, for a sampler with the settings it was made for.
    ///
    /// # Errors
    /// Those of [`MadeFor::check`], naming both sides.
    pub fn plan_for(&self, wanted: &MadeFor) -> Result<&SharingPlan, PlanError> {
        self.made_for.check(wanted)?;
        Ok(&self.plan)
    }

    /// Checks that the parts agree with each other.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] for a plan of another number of steps than the time grid of `made_for`, and for
    /// impossible numbers.
    pub fn validate(&self) -> Result<(), PlanError> {
        self.made_for.validate(self.plan.num_steps())?;
        let num_steps = self.plan.num_steps() as f64;
        if self.images == 0 {
            return Err(PlanError::invalid("images", "at least 1", 0));
        }
        if !(self.cost >= 0.0 && self.cost.is_finite()) {
            return Err(PlanError::invalid("cost", "finite and at least 0", self.cost));
        }
        if let Some(mean) = self.mean_similarity
            && !nearly_equal(mean + 1.0, 2.0 - self.cost / num_steps)
        {
            return Err(PlanError::invalid("mean_similarity", "1 - cost / number of steps", mean));
        }
        if let Some(speedup) = self.predicted_speedup
            && !(speedup > 0.0 && speedup.is_finite())
        {
            return Err(PlanError::invalid("predicted_speedup", "finite and above 0", speedup));
        }
        let expected = match self.objective {
            Objective::Budget { num_recompute } if num_recompute != self.plan.num_recompute() => {
                "the plan's number of recomputes"
            }
            Objective::MeanSimilarity { at_least } | Objective::WorstSimilarity { at_least }
                if !(-1.0..=1.0).contains(&at_least) =>
            {
                "a similarity in [-1, 1]"
            }
            Objective::MeanError { at_most } | Objective::WorstError { at_most }
                if !(at_most >= 0.0 && at_most.is_finite()) =>
            {
                "an error of at least 0"
            }
            Objective::Uniform { every: 0 } => "a recompute at every 1st, 2nd, ... step",
            _ => return Ok(()),
        };
        Err(PlanError::invalid("objective", expected, format!("{:?}", self.objective)))
    }
}

/// A kind of file.
struct Format {
    name: &'static str,
    version: u32,
    max_bytes: u64,
}

/// The part that files of all kinds and versions have in common.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<T> {
    // Read before as `Head`.
    #[serde(rename = "format")]
    _format: IgnoredAny,
    #[serde(rename = "version")]
    _version: IgnoredAny,
    content: T,
}

#[derive(Serialize)]
struct DocumentRef<'a, T> {
    format: &'static str,
    version: u32,
    content: &'a T,
}

impl Format {
    fn read<T: DeserializeOwned>(&self, json: &[u8]) -> Result<T, PlanError> {
        self.check_size(json.len())?;
        // Another version may have other keys: report the version, not an unknown key.
        let head: Head = serde_json::from_slice(json)?;
        if head.format != self.name {
            return Err(PlanError::invalid("the format of the file", self.name, head.format));
        }
        if head.version != self.version {
            let expected = format!("{}, so make the file again", self.version);
            return Err(PlanError::invalid("the version of the file", expected, head.version));
        }
        let document: Document<T> = serde_json::from_slice(json)?;
        Ok(document.content)
    }

    fn write<T: Serialize>(&self, content: &T) -> Result<String, PlanError> {
        let document = DocumentRef { format: self.name, version: self.version, content };
        let mut json = serde_json::to_string_pretty(&document)?;
        json.push('\n');
        self.check_size(json.len())?;
        Ok(json)
    }

    fn check_size(&self, bytes: usize) -> Result<(), PlanError> {
        if bytes as u64 <= self.max_bytes {
            return Ok(());
        }
        let expected = format!("at most {} bytes long", self.max_bytes);
        Err(PlanError::invalid(format!("a {} file", self.name), expected, bytes))
    }
}
