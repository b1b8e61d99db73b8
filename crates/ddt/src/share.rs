//! At which steps the condition encoder runs.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use ddt_sharing::{PlanFile, PlanFor, SharingPlan, budget_for_ratio};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};

const EXPECTED: &str = "expected none, uniform:R (R a whole number from 1, such as uniform:5), \
                        ratio:X (X from 0 to below 1, such as ratio:0.8) or a plan file";

/// A choice of steps; as text `none`, `uniform:5`, `ratio:0.8` or the path of a plan file, as JSON that text or the
/// list of steps.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Sharing {
    /// The encoder runs at every step.
    #[default]
    None,
    /// It runs at every `every`-th step.
    Uniform {
        /// Steps from one run to the next.
        every: usize,
    },
    /// It skips this share of the steps, evenly.
    Ratio {
        /// In [0, 1).
        ratio: f64,
    },
    /// It runs where a plan file says.
    File(PathBuf),
    /// It runs at these steps.
    Steps(Vec<usize>),
}

/// What a choice is written as.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Steps(Vec<usize>),
}

impl Sharing {
    /// Checks all that can be checked before weights are read: that a plan file was made for the settings `wanted`,
    /// whatever its network.
    ///
    /// # Errors
    ///
    /// As [`plan`](Self::plan), but for another network.
    pub fn check(&self, wanted: &PlanFor) -> Result<()> {
        match self {
            Self::File(path) => {
                let file = load(path)?;
                let model = file.made_for.model.clone();
                fits(path, &file, &PlanFor { model, ..wanted.clone() })
            }
            _ => self.plan(wanted).map(drop),
        }
    }

    /// The plan for a sampler with the settings `wanted`; `None` shares nothing.
    ///
    /// # Errors
    ///
    /// A plan file that cannot be read, or was made for another network, step grid, guidance or solver; steps that
    /// are no plan.
    pub fn plan(&self, wanted: &PlanFor) -> Result<Option<SharingPlan>> {
        let num_steps = wanted.grid.num_steps;
        let plan = match self {
            Self::None => return Ok(None),
            Self::Uniform { every } => SharingPlan::uniform(num_steps, *every),
            Self::Ratio { ratio } => {
                SharingPlan::uniform_budget(num_steps, budget_for_ratio(num_steps, *ratio))
            }
            Self::Steps(steps) => SharingPlan::new(steps.clone(), num_steps),
            Self::File(path) => {
                let file = load(path)?;
                fits(path, &file, wanted)?;
                return Ok(Some(file.plan));
            }
        };
        Ok(Some(plan.context("sharing")?.on_grid(wanted.grid)?))
    }
}

fn load(path: &Path) -> Result<PlanFile> {
    PlanFile::load(path).context(format!("sharing {}: {EXPECTED}", path.display()))
}

fn fits(path: &Path, file: &PlanFile, wanted: &PlanFor) -> Result<()> {
    file.check(wanted).context(format!("the sharing plan {} does not fit these settings", path.display()))
}

impl FromStr for Sharing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        if let Some(every) = text.strip_prefix("uniform:") {
            let every = every.parse().ok().filter(|every| *every > 0).ok_or(EXPECTED)?;
            return Ok(Self::Uniform { every });
        }
        if let Some(ratio) = text.strip_prefix("ratio:") {
            let ratio = ratio.parse().ok().filter(|ratio| (0.0..1.0).contains(ratio)).ok_or(EXPECTED)?;
            return Ok(Self::Ratio { ratio });
        }
        if text.is_empty() { Err(EXPECTED.to_owned()) } else { Ok(Self::File(text.into())) }
    }
}

/// As it is read; of a list of steps their number.
impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Uniform { every } => write!(f, "uniform:{every}"),
            Self::Ratio { ratio } => write!(f, "ratio:{ratio}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Steps(steps) => write!(f, "{} steps", steps.len()),
        }
    }
}

impl TryFrom<Written> for Sharing {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Text(text) => text.parse(),
            Written::Steps(steps) => Ok(Self::Steps(steps)),
        }
    }
}

impl From<Sharing> for Written {
    fn from(sharing: Sharing) -> Self {
        match sharing {
            Sharing::Steps(steps) => Self::Steps(steps),
            other => Self::Text(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use ddt_sharing::{Objective, PlanGuidance, StepGrid};

    use super::*;

    fn wanted(num_steps: usize) -> PlanFor {
        PlanFor {
            model: "ddt sha256:00".to_owned(),
            grid: StepGrid { num_steps, last_step: 0.04, timeshift: 1.0 },
            guidance: PlanGuidance { scale: 2.0, interval: (0.3, 1.0) },
            solver: Some("euler".to_owned()),
        }
    }

    fn choice(text: &str) -> Sharing {
        text.parse().unwrap()
    }

    #[test]
    fn choices_are_written_as_they_are_read() {
        for text in ["none", "uniform:5", "ratio:0.8", "plan.json"] {
            assert_eq!(choice(text).to_string(), text);
            let json = serde_json::to_string(&choice(text)).unwrap();
            assert_eq!(serde_json::from_str::<Sharing>(&json).unwrap(), choice(text));
        }
        let steps = Sharing::Steps(vec![0, 3]);
        assert_eq!(serde_json::to_string(&steps).unwrap(), "[0,3]");
        assert_eq!(serde_json::from_str::<Sharing>("[0,3]").unwrap(), steps);
        for text in
            ["", "uniform:", "uniform:0", "uniform:-3", "uniform:2.5", "ratio:1", "ratio:NaN", "ratio:-0.1"]
        {
            assert_eq!(text.parse::<Sharing>().unwrap_err(), EXPECTED);
        }
    }

    #[test]
    fn plans_have_the_runs_asked_for() {
        assert_eq!(choice("none").plan(&wanted(50)).unwrap(), None);
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
            let plan = choice(text).plan(&wanted(num_steps)).unwrap().unwrap();
            assert_eq!(plan.num_recompute(), num_recompute, "{text} of {num_steps}");
            plan.check_grid(&wanted(num_steps).grid).unwrap();
        }
        let listed = Sharing::Steps(vec![0, 3]);
        assert_eq!(listed.plan(&wanted(5)).unwrap().unwrap().recompute_steps(), [0, 3]);
        assert!(listed.check(&wanted(3)).is_err());
    }

    #[test]
    fn plan_files_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        let file = PlanFile {
            made_for: wanted(10),
            seed: 0,
            images: 1,
            objective: Objective::Uniform { every: 5 },
            plan: SharingPlan::uniform(10, 5).unwrap(),
            cost: 0.0,
            mean_similarity: 1.0,
            predicted_speedup: None,
        };
        file.save(&path).unwrap();
        let choice = Sharing::File(path.clone());
        assert_eq!(choice.plan(&wanted(10)).unwrap().unwrap().recompute_steps(), [0, 5]);

        let message = |wanted: &PlanFor| crate::testing::chain(&choice.plan(wanted).unwrap_err());
        let other_model = PlanFor { model: "ddt sha256:11".to_owned(), ..wanted(10) };
        assert!(message(&other_model).contains("sha256:11"), "{}", message(&other_model));
        assert!(message(&wanted(11)).contains("11 steps"), "{}", message(&wanted(11)));
        choice.check(&other_model).unwrap();
        assert!(choice.check(&wanted(11)).is_err());
        std::fs::write(&path, "{").unwrap();
        assert!(message(&wanted(10)).contains("plan.json"));
        std::fs::remove_file(&path).unwrap();
        assert!(message(&wanted(10)).contains("uniform:R"));
    }
}
