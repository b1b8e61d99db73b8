//! Protocols: how a number was measured, and whether it may have the name that papers use.
//!
//! FID, sFID and IS are names for numbers measured in one way: so many images, so many of each class, one network,
//! one reference. Any other Fréchet distance is a valid number, but a different one; it is called
//! `frechet_distance` here, with the list of departures from the named protocol.

use std::{collections::HashMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{error::MetricsError, inception_score::SPLIT_SIZE, precision_recall::NEIGHBOURHOOD};

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

/// Requirements of a protocol that papers name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamedProtocol {
    /// Its name.
    pub name: &'static str,
    /// Its reference file.
    pub source: &'static str,
    /// Images in the sample.
    pub num_samples: u64,
    /// Classes in the sample.
    pub num_classes: u64,
    /// Images of each class.
    pub images_per_class: u64,
    /// Images of the reference, for precision and recall; its mean and covariance are in its file.
    pub num_references: u64,
    /// Height and width of images on both sides, in pixels.
    pub image_size: (u64, u64),
    /// Name of the evaluator.
    pub evaluator: &'static str,
    /// Neighbour that radii reach to.
    pub neighbourhood: u64,
    /// Rows in a split of the Inception Score.
    pub split_size: u64,
}

/// The known protocols.
const NAMED_PROTOCOLS: [NamedProtocol; 2] = [
    adm("adm-imagenet-256", "VIRTUAL_imagenet256_labeled.npz", 256),
    adm("adm-imagenet-512", "VIRTUAL_imagenet512.npz", 512),
];

const fn adm(name: &'static str, source: &'static str, side: u64) -> NamedProtocol {
    NamedProtocol {
        name,
        source,
        num_samples: 50_000,
        num_classes: 1000,
        images_per_class: 50,
        num_references: 10_000,
        image_size: (side, side),
        evaluator: INCEPTION_2015,
        neighbourhood: NEIGHBOURHOOD as u64,
        split_size: SPLIT_SIZE as u64,
    }
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

impl NamedProtocol {
    /// Finds a protocol.
    ///
    /// ```
    /// use ddt_metrics::NamedProtocol;
    ///
    /// assert_eq!(NamedProtocol::find("adm-imagenet-256")?.num_samples, 50_000);
    /// # Ok::<(), ddt_metrics::MetricsError>(())
    /// ```
    ///
    /// # Errors
    /// [`MetricsError::Input`], which lists the known names.
    pub fn find(name: &str) -> Result<&'static Self, MetricsError> {
        static ALL: [NamedProtocol; 2] = NAMED_PROTOCOLS;
        ALL.iter().find(|it| it.name == name).ok_or_else(|| {
            let known = NAMED_PROTOCOLS.map(|it| it.name).join(", ");
            MetricsError::Input(format!("expected one of the protocols {known}, got {name:?}"))
        })
    }

    /// Compares a measurement with the requirements of this protocol.
    #[must_use]
    pub fn check(&self, protocol: &Protocol) -> Verdict {
        let evaluation = &protocol.evaluation;
        let mut verdict = Verdict { protocol: self.name.to_owned(), ..Verdict::default() };
        let mut demand = |what: &str, expected: String, got: String| {
            if expected != got {
                verdict.departures.push(Departure { what: what.to_owned(), expected, got });
            }
        };
        let number = |it: u64| it.to_string();
        let size =
            |it: Option<(u64, u64)>| it.map_or("no one size".to_owned(), |(h, w)| format!("{h} x {w}"));
        let (samples, references) = (&evaluation.samples, &evaluation.references);
        demand("images in the sample", number(self.num_samples), number(samples.num_images));
        demand("size of samples", size(Some(self.image_size)), size(samples.image_size));
        demand("images in the reference", number(self.num_references), number(references.num_images));
        demand("size of references", size(Some(self.image_size)), size(references.image_size));
        let statistics = |it| if it { "those of its file" } else { "taken from its images" }.to_owned();
        demand(
            "statistics of the reference",
            statistics(true),
            statistics(references.precomputed_statistics),
        );
        demand("evaluator", self.evaluator.to_owned(), evaluation.evaluator.name.clone());
        demand("neighbourhood", number(self.neighbourhood), number(evaluation.neighbourhood));
        demand("rows in a split", number(self.split_size), number(evaluation.split_size));
        match samples.classes {
            Some(counts) => {
                demand("classes in the sample", number(self.num_classes), number(counts.num_classes));
                let each = match (counts.fewest, counts.most) {
                    (fewest, most) if fewest == most => number(fewest),
                    (fewest, most) => format!("{fewest} to {most}"),
                };
                demand("images of each class", number(self.images_per_class), each);
            }
            None => verdict.unverified.push(format!(
                "{} images of each of {} classes: the sample has no labels",
                self.images_per_class, self.num_classes
            )),
        }
        verdict
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

#[cfg(test)]
mod tests {
    use super::{testing::protocol, *};

    #[test]
    fn a_measurement_by_the_book_has_the_papers_names() {
        let named = NamedProtocol::find("adm-imagenet-256").unwrap();
        let mut by_the_book = protocol();
        let verdict = named.check(&by_the_book);
        assert!(verdict.follows() && verdict.unverified.is_empty(), "{verdict:?}");
        assert_eq!(Quantity::Frechet.name(Some(&verdict)), "fid");
        assert_eq!(Quantity::Frechet.name(None), "frechet_distance");
        by_the_book.evaluation.samples.classes = None;
        let verdict = named.check(&by_the_book);
        assert!(verdict.follows());
        assert_eq!(verdict.unverified, ["50 images of each of 1000 classes: the sample has no labels"]);
    }

    #[test]
    fn every_departure_takes_the_name_away() {
        let named = NamedProtocol::find("adm-imagenet-256").unwrap();
        let departures = |change: fn(&mut Protocol)| {
            let mut changed = protocol();
            change(&mut changed);
            let verdict = named.check(&changed);
            assert_eq!(Quantity::Frechet.name(Some(&verdict)), "frechet_distance");
            assert_eq!(Quantity::SpatialFrechet.name(Some(&verdict)), "spatial_frechet_distance");
            assert_eq!(Quantity::Score.name(Some(&verdict)), "class_score");
            verdict.departures.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let expected = "images in the sample: expected 50000, got 10000";
        assert_eq!(departures(|it| it.evaluation.samples.num_images = 10_000), [expected]);
        for change in [
            (|it| it.evaluation.samples.image_size = None) as fn(&mut Protocol),
            |it| it.evaluation.references.num_images = 50_000,
            |it| it.evaluation.references.image_size = Some((64, 64)),
            |it| it.evaluation.references.precomputed_statistics = false,
            |it| it.evaluation.evaluator.name = "dinov2-vit-l-14".to_owned(),
            |it| it.evaluation.neighbourhood = 5,
            |it| it.evaluation.split_size = 500,
            |it| it.evaluation.samples.classes = Some(ClassCounts { num_classes: 999, fewest: 50, most: 50 }),
            |it| {
                it.evaluation.samples.classes = Some(ClassCounts { num_classes: 1000, fewest: 49, most: 51 })
            },
        ] {
            assert_eq!(departures(change).len(), 1);
        }
        let error = NamedProtocol::find("fid").unwrap_err().to_string();
        assert_eq!(error, "expected one of the protocols adm-imagenet-256, adm-imagenet-512, got \"fid\"");
    }
}
