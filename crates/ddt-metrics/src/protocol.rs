//! How a number was measured, and its name, which depends on that.

use std::{collections::HashMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSet {
    /// File or folder, without its path: the hash tells sets apart.
    pub name: String,
    /// SHA-256 of its contents.
    pub sha256: String,
    /// Images whose features were used.
    pub num_images: u64,
    /// Height and width of the images in pixels; `None` where they differ or there are none.
    pub image_size: Option<(u64, u64)>,
    /// Classes of the images, where they have labels.
    pub classes: Option<ClassCounts>,
    /// Whether mean and covariance are those in the file, instead of computed from the images.
    pub precomputed_statistics: bool,
}

/// Images per class of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassCounts {
    /// Classes with an image.
    pub num_classes: u64,
    /// Images of the class with the fewest.
    pub fewest: u64,
    /// Images of the class with the most.
    pub most: u64,
}

impl ClassCounts {
    /// Counts labels; `None` if there are none.
    ///
    /// ```
    /// use ddt_metrics::ClassCounts;
    ///
    /// let counts = ClassCounts::of(&[7, 3, 7]).unwrap();
    /// assert_eq!((counts.num_classes, counts.fewest, counts.most), (2, 1, 2));
    /// ```
    #[must_use]
    pub fn of(labels: &[i64]) -> Option<Self> {
        let mut counts: HashMap<i64, u64> = HashMap::new();
        labels.iter().for_each(|label| *counts.entry(*label).or_default() += 1);
        let (fewest, most) = (*counts.values().min()?, *counts.values().max()?);
        Some(Self { num_classes: counts.len() as u64, fewest, most })
    }
}

/// Network that turns images into features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluator {
    /// Its name; FID is defined by [`INCEPTION_2015`].
    pub name: String,
    /// SHA-256 of its weights.
    pub weights_sha256: String,
    /// Numbers in a row of features.
    pub feature_size: u64,
}

/// Name of TensorFlow's Inception of 2015, with its resize and its bias-free logits.
pub const INCEPTION_2015: &str = "inception-2015-tf";

/// Settings of a comparison of samples and references.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationProtocol {
    /// The samples.
    pub samples: ImageSet,
    /// The references.
    pub references: ImageSet,
    /// The network whose features were compared.
    pub evaluator: Evaluator,
    /// Neighbour that the radii of precision and recall reach to.
    pub neighbourhood: u64,
    /// Rows in a split of the score.
    pub split_size: u64,
}

/// Everything that a number depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Settings of the sample's generation, as its generator states them: weights and autoencoder by hash, solver,
    /// steps, guidance and its interval, plan, classes, seed, order of rows, rounding. `None` where that is unknown.
    pub sample: Option<Value>,
    /// Settings of the measurement.
    pub evaluation: EvaluationProtocol,
}

/// A departure of a measurement from a protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Departure {
    /// The quantity that differs.
    pub what: String,
    /// The protocol's requirement.
    pub expected: String,
    /// The value found.
    pub got: String,
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, got {}", self.what, self.expected, self.got)
    }
}

/// Result of comparing a measurement with a named protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Name of the protocol.
    pub protocol: String,
    /// Departures from it; with any, no number may have its names.
    pub departures: Vec<Departure>,
    /// Requirements that could not be checked.
    pub unverified: Vec<String>,
}

impl Verdict {
    /// Whether nothing departs from the protocol.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.departures.is_empty()
    }
}

/// A number whose name depends on the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// Fréchet distance of the evaluator's features.
    Frechet,
    /// Fréchet distance of its spatial features.
    SpatialFrechet,
    /// Exponential of the mean divergence of its class probabilities.
    Score,
}

impl Quantity {
    /// The papers' name if the protocol was followed, else a descriptive name.
    #[must_use]
    pub fn name(self, verdict: Option<&Verdict>) -> &'static str {
        match (self, verdict.is_some_and(Verdict::follows)) {
            (Self::Frechet, true) => "fid",
            (Self::Frechet, false) => "frechet_distance",
            (Self::SpatialFrechet, true) => "sfid",
            (Self::SpatialFrechet, false) => "spatial_frechet_distance",
            (Self::Score, true) => "inception_score",
            (Self::Score, false) => "class_score",
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A protocol that follows ADM's at 256 pixels.
    pub(crate) fn protocol() -> Protocol {
        let set = |name: &str, num_images, precomputed_statistics| ImageSet {
            name: name.to_owned(),
            sha256: "ab".repeat(32),
            num_images,
            image_size: Some((256, 256)),
            classes: Some(ClassCounts { num_classes: 1000, fewest: 50, most: 50 }),
            precomputed_statistics,
        };
        Protocol {
            sample: Some(serde_json::json!({
                "solver": "euler", "guidance": { "scale": 2.0, "interval": [0.3, 1.0] }, "plan": null,
            })),
            evaluation: EvaluationProtocol {
                samples: set("samples.npz", 50_000, false),
                references: set("VIRTUAL_imagenet256_labeled.npz", 10_000, true),
                evaluator: Evaluator {
                    name: INCEPTION_2015.to_owned(),
                    weights_sha256: "cd".repeat(32),
                    feature_size: 2048,
                },
                neighbourhood: 3,
                split_size: 5000,
            },
        }
    }
}
