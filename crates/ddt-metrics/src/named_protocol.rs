//! Protocols that papers name: what a measurement must be for its numbers to bear the papers' names.
//!
//! FID, sFID and IS are names for numbers measured in one way: so many images, so many of each class, one network,
//! one reference. Any other Fréchet distance is a valid number, but a different one; it is called
//! `frechet_distance` here, with the list of departures from the named protocol.

use serde_json::{Map, Value};

use crate::{
    error::MetricsError,
    inception_score::SPLIT_SIZE,
    precision_recall::NEIGHBOURHOOD,
    protocol::{Departure, INCEPTION_2015, Protocol, Verdict},
};

/// Requirements of a protocol that papers name.
#[derive(Debug, Clone, PartialEq)]
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
    /// Generation of the sample; empty where any network and sampler will do.
    pub generation: &'static [Setting],
    /// The paper's results, where it has any.
    pub published: &'static [Published],
}

/// A required setting of the sample's generation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// Its name.
    pub what: &'static str,
    /// Its place among the sample's settings, as a JSON pointer.
    pub at: &'static str,
    /// Its value as JSON; numbers may differ by rounding, `null` is a setting that is not there.
    pub expected: &'static str,
}

/// A published result.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Published {
    /// The network and the paper.
    pub of: &'static str,
    /// Names and values of its numbers.
    pub numbers: &'static [(&'static str, f64)],
}

/// The known protocols.
static NAMED_PROTOCOLS: [NamedProtocol; 8] = [
    adm("adm-imagenet-256", 256),
    adm("adm-imagenet-512", 512),
    NamedProtocol {
        generation: &DDT_256,
        published: &[of("DDT-XL/2, arXiv:2504.05741, Tab. 4", &[("fid", 1.31)])],
        ..adm("ddt-imagenet-256", 256)
    },
    NamedProtocol {
        generation: &DDT_512,
        published: &[of("DDT-XL/2, arXiv:2504.05741, 500,000 steps at 512 px", &[("fid", 1.28)])],
        ..adm("ddt-imagenet-512", 512)
    },
    NamedProtocol {
        generation: &RAE_256,
        published: &[
            of("DiT^DH-XL, arXiv:2510.11690, 80 epochs", &[("fid", 2.16)]),
            of(
                "DiT^DH-XL, arXiv:2510.11690, 800 epochs",
                &[("fid", 1.51), ("inception_score", 242.9), ("precision", 0.79), ("recall", 0.63)],
            ),
        ],
        ..adm("rae-imagenet-256", 256)
    },
    NamedProtocol {
        generation: &RAE_256_AUTOGUIDED,
        published: &[of(
            "DiT^DH-XL, arXiv:2510.11690, 800 epochs, guided away from DiT^DH-S of 14 epochs",
            &[("fid", 1.13), ("inception_score", 262.6), ("precision", 0.78), ("recall", 0.67)],
        )],
        ..adm("rae-imagenet-256-autoguided", 256)
    },
    NamedProtocol { generation: &RAE_512, ..adm("rae-imagenet-512", 512) },
    NamedProtocol {
        generation: &RAE_512_AUTOGUIDED,
        published: &[of(
            "DiT^DH-XL, arXiv:2510.11690, 400 epochs, guided away from DiT^DH-S of 20 epochs",
            &[("fid", 1.13)],
        )],
        ..adm("rae-imagenet-512-autoguided", 512)
    },
];

static DDT_256: [Setting; 9] = ddt(r#"{"scale": 2, "interval": [0.3, 1]}"#);
static DDT_512: [Setting; 9] = ddt(r#"{"scale": 3, "interval": [0.3, 1]}"#);

// Shifts are the roots of 48 and 192: a latent's numbers over 4096.
const RAE_TIMES_256: &str = r#"{"num_steps": 49, "timeshift": 6.928203230275509, "end": 0.999}"#;
const RAE_TIMES_512: &str = r#"{"num_steps": 49, "timeshift": 13.856406460551018, "end": 0.999}"#;

static RAE_256: [Setting; 9] = rae(RAE_TIMES_256, UNGUIDED, "null");
static RAE_512: [Setting; 9] = rae(RAE_TIMES_512, UNGUIDED, "null");
static RAE_256_AUTOGUIDED: [Setting; 9] = rae(
    RAE_TIMES_256,
    guidance(r#"{"scale": 1.42, "interval": [0, 1], "closed": true}"#),
    r#""ditdh-s-256""#,
);
static RAE_512_AUTOGUIDED: [Setting; 9] =
    rae(RAE_TIMES_512, guidance(r#"{"scale": 1.5, "interval": [0, 1], "closed": true}"#), r#""ditdh-s-512""#);

/// Without guidance its interval means nothing.
const UNGUIDED: Setting = setting("guidance scale", "/pipeline/guidance/scale", "1");

const fn guidance(expected: &'static str) -> Setting {
    setting("guidance", "/pipeline/guidance", expected)
}

const fn setting(what: &'static str, at: &'static str, expected: &'static str) -> Setting {
    Setting { what, at, expected }
}

const fn of(of: &'static str, numbers: &'static [(&'static str, f64)]) -> Published {
    Published { of, numbers }
}

/// DDT-XL/2 as in the tables of its paper.
const fn ddt(guided: &'static str) -> [Setting; 9] {
    let network = ["null", "22"];
    let grid = r#"{"num_steps": 250, "last_step": 0.04, "timeshift": 1}"#;
    generation(network, grid, guidance(guided), ["null", r#""clamp(floor(127.5 x + 128), 0, 255)""#])
}

/// DiT^DH-XL as in its paper: 50 points of time are 49 steps, and pixels are rounded down.
const fn rae(grid: &'static str, guidance: Setting, guiding: &'static str) -> [Setting; 9] {
    generation([r#""dit-dh""#, "28"], grid, guidance, [guiding, r#""clamp(floor(127.5 x + 127.5), 0, 255)""#])
}

const fn generation(
    [family, blocks]: [&'static str; 2],
    grid: &'static str,
    guidance: Setting,
    [guiding, rounding]: [&'static str; 2],
) -> [Setting; 9] {
    [
        setting("family of the network", "/pipeline/network/family", family),
        setting("width of the network", "/pipeline/network/hidden_size", "1152"),
        setting("encoder blocks of the network", "/pipeline/network/num_encoder_blocks", blocks),
        setting("solver", "/pipeline/solver", r#""euler""#),
        setting("steps", "/pipeline/grid", grid),
        guidance,
        setting("guiding network", "/pipeline/guiding_network/from", guiding),
        setting("sharing", "/pipeline/sharing", r#""none""#),
        setting("rounding", "/rounding", rounding),
    ]
}

const fn adm(name: &'static str, side: u64) -> NamedProtocol {
    NamedProtocol {
        name,
        source: if side == 512 { "VIRTUAL_imagenet512.npz" } else { "VIRTUAL_imagenet256_labeled.npz" },
        num_samples: 50_000,
        num_classes: 1000,
        images_per_class: 50,
        num_references: 10_000,
        image_size: (side, side),
        evaluator: INCEPTION_2015,
        neighbourhood: NEIGHBOURHOOD as u64,
        split_size: SPLIT_SIZE as u64,
        generation: &[],
        published: &[],
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
        NAMED_PROTOCOLS.iter().find(|it| it.name == name).ok_or_else(|| {
            let known = NAMED_PROTOCOLS.each_ref().map(|it| it.name).join(", ");
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
        match protocol.sample.as_ref().and_then(|it| it.pointer(SETTINGS)) {
            Some(settings) => verdict.departures.extend(self.generation_departures(settings)),
            None if self.generation.is_empty() => {}
            None => {
                let what = "how the sample was generated: no description of ddt dataset is beside it";
                verdict.unverified.push(what.to_owned());
            }
        }
        verdict
    }
}

impl NamedProtocol {
    /// Departures of a sample's settings, `protocol` in the description of a data set.
    #[must_use]
    pub fn generation_departures(&self, settings: &Value) -> Vec<Departure> {
        self.generation.iter().filter_map(|it| it.departure(settings)).collect()
    }
}

/// The settings of the generation in [`Protocol::sample`].
const SETTINGS: &str = "/protocol";

impl Setting {
    /// How the settings of a sample depart from this one.
    fn departure(&self, settings: &Value) -> Option<Departure> {
        let expected: Value = serde_json::from_str(self.expected).unwrap_or_default();
        let got = settings.pointer(self.at).unwrap_or(&Value::Null);
        (!same(&expected, got)).then(|| Departure {
            what: self.what.to_owned(),
            expected: shown(&expected),
            got: shown(got),
        })
    }
}

/// Equality but for the rounding of numbers; an object's missing key is `null`.
fn same<'a>(a: &'a Value, b: &'a Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * a.abs(),
            _ => false,
        },
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            let value = |of: &'a Map<String, Value>, key: &String| of.get(key).unwrap_or(&Value::Null);
            a.keys().chain(b.keys()).all(|key| same(value(a, key), value(b, key)))
        }
        _ => a == b,
    }
}
/// A setting in words.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ClassCounts, Quantity, testing::protocol};

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
        assert!(
            error.starts_with(
                "expected one of the protocols adm-imagenet-256, adm-imagenet-512, ddt-imagenet-256"
            ) && error.ends_with("got \"fid\""),
            "{error}"
        );
    }

    /// The settings of DiT^DH's paper as `ddt dataset` writes them.
    fn rae() -> Protocol {
        let sample = serde_json::json!({ "count": 50_000, "protocol": { "pipeline": {
            "network": { "family": "dit-dh", "hidden_size": 1152, "num_encoder_blocks": 28 },
            "guiding_network": { "from": "ditdh-s-256", "sha256": "ab" },
            "solver": "euler",
            "grid": { "num_steps": 49, "timeshift": 48f64.sqrt(), "end": 0.999 },
            "guidance": { "scale": 1.42, "interval": [0.0, 1.0], "closed": true },
            "sharing": "none",
        }, "rounding": "clamp(floor(127.5 x + 127.5), 0, 255)" } });
        Protocol { sample: Some(sample), ..protocol() }
    }

    #[test]
    fn a_papers_protocol_is_also_one_of_generation() {
        let guided = NamedProtocol::find("rae-imagenet-256-autoguided").unwrap();
        assert!(guided.check(&rae()).follows(), "{:?}", guided.check(&rae()));
        assert_eq!(guided.published[0].numbers[0], ("fid", 1.13));
        for (at, value, expected) in [
            ("/pipeline/solver", "\"heun\"", "solver: expected euler, got heun"),
            ("/pipeline/grid/num_steps", "50", "steps: expected "),
            ("/pipeline/grid/timeshift", "1", "steps: expected "),
            ("/pipeline/grid/end", "null", "steps: expected "),
            ("/pipeline/guidance/closed", "false", "guidance: expected "),
            ("/pipeline/guidance/interval", "[0.3, 1]", "guidance: expected "),
            (
                "/pipeline/guiding_network/from",
                "\"mine.pt\"",
                "guiding network: expected ditdh-s-256, got mine.pt",
            ),
            ("/pipeline/sharing", "\"uniform:2,order:2\"", "sharing: expected none, got uniform:2,order:2"),
            ("/rounding", "null", "rounding: expected clamp("),
            ("/pipeline/network/hidden_size", "384", "width of the network: expected 1152, got 384"),
        ] {
            let mut other = rae();
            let pointer = format!("{SETTINGS}{at}");
            *other.sample.as_mut().unwrap().pointer_mut(&pointer).unwrap() =
                serde_json::from_str(value).unwrap();
            let departures: Vec<_> =
                guided.check(&other).departures.iter().map(ToString::to_string).collect();
            assert_eq!(departures.len(), 1, "{at}: {departures:?}");
            assert!(departures[0].starts_with(expected), "{departures:?}");
        }
        // ADM's protocol asks for no sampler; other papers' ask for theirs.
        assert!(NamedProtocol::find("adm-imagenet-256").unwrap().check(&rae()).follows());
        let of = |name| NamedProtocol::find(name).unwrap().check(&rae()).departures.len();
        assert_eq!((of("rae-imagenet-256"), of("ddt-imagenet-256")), (2, 6));
        // Without a description.
        let verdict = guided.check(&Protocol { sample: None, ..rae() });
        assert!(verdict.follows() && verdict.unverified[0].contains("how the sample was generated"));
    }

    #[test]
    fn every_protocol_can_be_found_and_its_settings_are_json() {
        for it in &NAMED_PROTOCOLS {
            assert_eq!(NamedProtocol::find(it.name).unwrap(), it);
            for setting in it.generation {
                serde_json::from_str::<Value>(setting.expected).unwrap();
            }
        }
    }
}
