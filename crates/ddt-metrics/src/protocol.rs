//! How a number came about: everything two numbers must share to be compared.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One side of a comparison, as it was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSet {
    /// File or folder, without its path: the hash tells sets apart.
    pub name: String,
    /// SHA-256 of what was read.
    pub sha256: String,
    /// Images that features were taken of.
    pub num_images: u64,
    /// Height and width of the images in pixels; `None` where they differ or there is none.
    pub image_size: Option<(u64, u64)>,
    /// Classes of the images, where labels came with them.
    pub classes: Option<ClassCounts>,
    /// Whether mean and covariance stood in the file, instead of being taken from the images.
    pub precomputed_statistics: bool,
}

/// How many images of each class a set has.
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
    /// Counts labels; `None` without any.
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

/// What turns images into features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluator {
    /// Its name; [`INCEPTION_2015`] is the network that FID is defined by.
    pub name: String,
    /// SHA-256 of its weights.
    pub weights_sha256: String,
    /// Numbers in a row of features.
    pub feature_size: u64,
}

/// Name of TensorFlow's Inception of 2015, with its resize and its bias-free logits.
pub const INCEPTION_2015: &str = "inception-2015-tf";

/// How samples and references were compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationProtocol {
    /// The samples.
    pub samples: ImageSet,
    /// What they were compared with.
    pub references: ImageSet,
    /// What features they were compared by.
    pub evaluator: Evaluator,
    /// Neighbour that the radii of precision and recall reach to.
    pub neighbourhood: u64,
    /// Rows in a split of the score.
    pub split_size: u64,
}

/// Everything that went into a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// How the sample was drawn, as the program that drew it wrote it down: weights and autoencoder by hash,
    /// solver, steps, guidance and its interval, plan, classes, seed, order of rows, rounding. `None` where
    /// nobody knows, as of an archive from elsewhere.
    pub sample: Option<Value>,
    /// How it was measured.
    pub evaluation: EvaluationProtocol,
}
