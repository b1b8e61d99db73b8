//! Steps at which the condition encoder runs, and forecasts of its output at the others.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use ddt_files::read_file;
use ddt_sharing::{ForecastOrder, MadeFor, PlanFile, SharingPlan, budget_for_ratio};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};

const EXPECTED: &str = "expected none, uniform:R (R a whole number from 1, such as uniform:5), \
                        ratio:X (X from 0 to below 1, such as ratio:0.8), either with an order of 0, 1 or 2 \
                        (such as ratio:0.8,order:1), or a plan file";

/// A choice of steps; as text `none`, `uniform:5`, `ratio:0.8,order:1` or the path of a plan file, as JSON that text or
/// a plan.
///
/// Read from text without an order, [`DEFAULT_ORDER`](Self::DEFAULT_ORDER) forecasts; in JSON no order means reuse, as
/// files had before there were forecasts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Sharing {
    /// The encoder runs at every step.
    #[default]
    None,
    /// At every `every`-th step.
    Uniform {
        /// Steps from one run to the next.
        every: usize,
        /// Order of the forecasts.
        order: ForecastOrder,
    },
    /// At evenly spaced steps, of which it skips this share.
    Ratio {
        /// Share of the steps without the encoder, in [0, 1).
        ratio: f64,
        /// Order of the forecasts.
        order: ForecastOrder,
    },
    /// At the steps of a plan file.
    File(PathBuf),
    /// At the steps of this plan.
    Plan(SharingPlan),
}

/// Serialised form of a choice.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Plan(SharingPlan),
}

impl Sharing {
    /// The order of forecasts where the user names none: the one with the smallest error on the demo.
    pub const DEFAULT_ORDER: ForecastOrder = ForecastOrder::Quadratic;

    /// Checks all that can be checked before weights are read: that a plan file was made for the settings `wanted`,
    /// whatever its network.
    ///
    /// # Errors
    /// As [`plan`](Self::plan), but for another network.
    pub fn check(&self, wanted: &MadeFor, num_steps: usize) -> Result<()> {
        match self {
            Self::File(path) => {
                let file = load(path)?;
                let wanted = wanted.clone().with_model(file.made_for.model());
                fitting(path, &file, &wanted).map(drop)
            }
            _ => self.plan(wanted, num_steps).map(drop),
        }
    }

    /// The plan for a sampler with the settings `wanted` and this many steps; `None` shares nothing.
    ///
    /// # Errors
    /// A plan file that cannot be read, or was made for another network, step grid, guidance or solver; a plan of
    /// another number of steps.
    pub fn plan(&self, wanted: &MadeFor, num_steps: usize) -> Result<Option<SharingPlan>> {
        let plan = match self {
            Self::None => return Ok(None),
            Self::Uniform { every, order } => {
                SharingPlan::uniform(num_steps, *every).context("sharing")?.with_order(*order)
            }
            Self::Ratio { ratio, order } => {
                let plan = SharingPlan::uniform_budget(num_steps, budget_for_ratio(num_steps, *ratio));
                plan.context("sharing")?.with_order(*order)
            }
            Self::Plan(plan) => {
                plan.check_num_steps(num_steps).context("sharing")?;
                plan.clone()
            }
            Self::File(path) => fitting(path, &load(path)?, wanted)?,
        };
        Ok(Some(plan))
    }
}

fn load(path: &Path) -> Result<PlanFile> {
    let blame = || format!("sharing {}: {EXPECTED}", path.display());
    let json = read_file(path, PlanFile::MAX_JSON_BYTES).context(blame())?;
    PlanFile::from_json(&json).context(blame())
}

fn fitting(path: &Path, file: &PlanFile, wanted: &MadeFor) -> Result<SharingPlan> {
    let plan = file.plan_for(wanted);
    let plan = plan.context(format!("the sharing plan {} does not fit these settings", path.display()))?;
    Ok(plan.clone())
}

fn parse(text: &str, default: ForecastOrder) -> Result<Sharing, String> {
    if text == "none" {
        return Ok(Sharing::None);
    }
    let split = |text: &str| match text.split_once(",order:") {
        None => Some((text.to_owned(), default)),
        Some((value, order)) => Some((value.to_owned(), order.parse().ok()?)),
    };
    if let Some(rest) = text.strip_prefix("uniform:") {
        let (every, order) = split(rest).ok_or(EXPECTED)?;
        let every = every.parse().ok().filter(|every| *every > 0).ok_or(EXPECTED)?;
        return Ok(Sharing::Uniform { every, order });
    }
    if let Some(rest) = text.strip_prefix("ratio:") {
        let (ratio, order) = split(rest).ok_or(EXPECTED)?;
        let ratio = ratio.parse().ok().filter(|ratio| (0.0..1.0).contains(ratio)).ok_or(EXPECTED)?;
        return Ok(Sharing::Ratio { ratio, order });
    }
    if text.is_empty() { Err(EXPECTED.to_owned()) } else { Ok(Sharing::File(text.into())) }
}

impl FromStr for Sharing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, Self::DEFAULT_ORDER)
    }
}

/// The form that [`FromStr`] reads; for a plan, its number of recomputes.
impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Uniform { every, order } => write!(f, "uniform:{every},order:{order}"),
            Self::Ratio { ratio, order } => write!(f, "ratio:{ratio},order:{order}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Plan(plan) => {
                let (runs, steps) = (plan.num_recompute(), plan.num_steps());
                write!(f, "{runs} of {steps} steps, order:{}", plan.order())
            }
        }
    }
}

impl TryFrom<Written> for Sharing {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Text(text) => parse(&text, ForecastOrder::Reuse),
            Written::Plan(plan) => Ok(Self::Plan(plan)),
        }
    }
}

impl From<Sharing> for Written {
    fn from(sharing: Sharing) -> Self {
        match sharing {
            Sharing::Plan(plan) => Self::Plan(plan),
            other => Self::Text(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use ddt_flow::{Guidance, TimeGrid};
    use ddt_sharing::{Objective, Similarity, SimilarityFile, optimal_plan};

    use super::*;

    fn wanted(num_steps: usize) -> MadeFor {
        let grid = TimeGrid::new(num_steps, Some(0.04), 1.0).unwrap();
        let guidance = Guidance::new(2.0, (0.3, 1.0)).unwrap();
        let wanted = MadeFor::new("ddt sha256:00").with("grid", &grid).unwrap();
        wanted.with("guidance", &guidance).unwrap().with("solver", &"euler").unwrap()
    }

    fn choice(text: &str) -> Sharing {
        text.parse().unwrap()
    }

    #[test]
    fn choices_are_written_as_they_are_read() {
        for text in ["none", "uniform:5,order:0", "ratio:0.8,order:1", "uniform:3,order:2", "plan.json"] {
            assert_eq!(choice(text).to_string(), text);
            let json = serde_json::to_string(&choice(text)).unwrap();
            assert_eq!(serde_json::from_str::<Sharing>(&json).unwrap(), choice(text));
        }
        assert_eq!(choice("ratio:0.8").to_string(), "ratio:0.8,order:2");
        let old: Sharing = serde_json::from_str("\"ratio:0.8\"").unwrap();
        assert_eq!(old.to_string(), "ratio:0.8,order:0");
        let plan = Sharing::Plan(SharingPlan::new(vec![0, 3], 5).unwrap());
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Sharing>(&json).unwrap(), plan);
        assert_eq!(plan.plan(&wanted(5), 5).unwrap().unwrap().recompute_steps(), [0, 3]);
        assert!(plan.check(&wanted(6), 6).is_err());
        let bad_counts = ["", "uniform:", "uniform:0", "uniform:-3", "uniform:2.5", "uniform:5,order:3"];
        let bad_ratios = ["ratio:1", "ratio:NaN", "ratio:-0.1", "ratio:0.8,order:", "ratio:0.8,1"];
        for text in bad_counts.into_iter().chain(bad_ratios) {
            assert_eq!(text.parse::<Sharing>().unwrap_err(), EXPECTED);
        }
    }

    #[test]
    fn plans_have_the_runs_asked_for() {
        assert_eq!(choice("none").plan(&wanted(50), 50).unwrap(), None);
        for (text, num_steps, num_recompute) in [
            ("uniform:5", 50, 10),
            ("uniform:5", 51, 11),
            ("uniform:99", 50, 1),
            ("ratio:0", 50, 50),
            ("ratio:0.8", 50, 10),
            ("ratio:0.7", 10, 3),
            ("ratio:0.75", 10, 3),
            ("ratio:0.999", 10, 1),
        ] {
            let plan = choice(text).plan(&wanted(num_steps), num_steps).unwrap().unwrap();
            assert_eq!(plan.num_recompute(), num_recompute, "{text} of {num_steps}");
            plan.check_num_steps(num_steps).unwrap();
        }
    }

    #[test]
    fn plan_files_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        // The states change at step 5.
        let alike = |it: usize| if (it / 10 < 5) == (it % 10 < 5) { 1.0 } else { 0.0 };
        let similarity = Similarity::from_matrix((0..100).map(alike).collect(), 10).unwrap();
        let best = optimal_plan(&similarity, 2).unwrap();
        let measured =
            SimilarityFile { made_for: wanted(10), seed: 0, images: 1, similarity, inner_products: None };
        let file = PlanFile::new(&measured, Objective::Budget { num_recompute: 2 }, best);
        std::fs::write(&path, file.to_json().unwrap()).unwrap();
        let choice = Sharing::File(path.clone());
        assert_eq!(choice.plan(&wanted(10), 10).unwrap().unwrap().recompute_steps(), [0, 5]);

        let message = |wanted: &MadeFor| format!("{:?}", choice.plan(wanted, 10).unwrap_err());
        let other_model = wanted(10).with_model("ddt sha256:11");
        assert!(message(&other_model).contains("sha256:11"), "{}", message(&other_model));
        assert!(message(&wanted(11)).contains("num_steps 10, wanted 11"), "{}", message(&wanted(11)));
        choice.check(&other_model, 10).unwrap();
        assert!(choice.check(&wanted(11), 11).is_err());
        std::fs::write(&path, "{").unwrap();
        assert!(message(&wanted(10)).contains("plan.json"));
        std::fs::remove_file(&path).unwrap();
        assert!(message(&wanted(10)).contains("uniform:R"));
    }
}
