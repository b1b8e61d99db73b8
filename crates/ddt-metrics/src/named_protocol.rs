//! Protocols that papers name, and whether a measurement followed one.
//!
//! FID, sFID and IS are names for numbers that came about in one way: so many images, so many of each class,
//! one network, one reference. Any other Fréchet distance is a good number, but another one; it is called
//! `frechet_distance` here, with what stands between it and the name.

use serde::{Deserialize, Serialize};

use crate::protocol::INCEPTION_2015;
use crate::{MetricsError, NEIGHBOURHOOD, Protocol, SPLIT_SIZE};

/// What a protocol of this name demands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamedProtocol {
    /// Its name.
    pub name: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// Images in the sample.
    pub num_samples: u64,
    /// Classes in the sample.
    pub num_classes: u64,
    /// Images of each class.
    pub images_per_class: u64,
    /// Images of the reference, for precision and recall; its mean and covariance stand in its file.
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

/// The protocols that have names here.
pub const NAMED_PROTOCOLS: [NamedProtocol; 2] = [
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

/// Something in which a measurement departs from a protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Departure {
    /// What differs.
    pub what: String,
    /// What the protocol demands.
    pub expected: String,
    /// What was found.
    pub got: String,
}

impl std::fmt::Display for Departure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: expected {}, got {}", self.what, self.expected, self.got)
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// The protocol that was asked for.
    pub protocol: String,
    /// What differs from it; with any, no number bears its name.
    pub departures: Vec<Departure>,
    /// What it demands and the sample's origin would have to say.
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
    ///
    /// [`MetricsError::UnknownProtocol`], which lists the known ones.
    pub fn find(name: &str) -> Result<&'static Self, MetricsError> {
        static ALL: [NamedProtocol; 2] = NAMED_PROTOCOLS;
        ALL.iter().find(|it| it.name == name).ok_or_else(|| MetricsError::UnknownProtocol {
            known: NAMED_PROTOCOLS.map(|it| it.name).join(", "),
            got: name.to_owned(),
        })
    }

    /// Compares how something was measured with what this protocol demands.
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

/// What a number is called, by what it is and how it came about.
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
    /// The papers' name if the protocol was followed, else a name for what it is.
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
mod tests {
    use super::*;
    use crate::ClassCounts;
    use crate::report::testing::protocol;

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
