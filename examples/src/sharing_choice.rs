//! `--share`: at which steps the condition encoder runs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use ddt_sharing::{MadeFor, PlanFile, SharingPlan, budget_for_ratio};

use crate::atomic_file;

const EXPECTED: &str = "expected none, uniform:R (R a whole number from 1, such as uniform:5), \
                        ratio:X (X from 0 to below 1, such as ratio:0.8) or a plan file";

/// What the user asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum SharingChoice {
    /// The encoder runs at every step.
    None,
    /// It runs at every n-th step.
    Uniform {
        /// Steps from one run to the next.
        every: usize,
    },
    /// It skips this share of the steps, evenly.
    Ratio {
        /// In [0, 1).
        ratio: f64,
    },
    /// A plan file says where it runs.
    File(PathBuf),
}

impl SharingChoice {
    /// Checks what can be checked before anything is known of the sampler.
    ///
    /// # Errors
    ///
    /// A plan file that cannot be read.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::File(path) => load(path).map(drop),
            Self::None | Self::Uniform { .. } | Self::Ratio { .. } => Ok(()),
        }
    }

    /// Checks that a plan file was made for the settings `wanted`, whatever its network.
    ///
    /// # Errors
    ///
    /// A plan file that cannot be read, or was made for another step grid, guidance or solver.
    pub fn check_settings(&self, wanted: &MadeFor) -> Result<()> {
        match self {
            Self::File(path) => {
                let file = load(path)?;
                let wanted = wanted.clone().with_model(file.made_for.model());
                fitting(path, &file, &wanted).map(drop)
            }
            Self::None | Self::Uniform { .. } | Self::Ratio { .. } => Ok(()),
        }
    }

    /// The plan for a sampler with the settings `wanted` and so many steps; `None` shares nothing.
    ///
    /// # Errors
    ///
    /// A plan file that cannot be read, or was made for another network, step grid, guidance or solver.
    pub fn plan(&self, wanted: &MadeFor, num_steps: usize) -> Result<Option<SharingPlan>> {
        let plan = match self {
            Self::None => return Ok(None),
            Self::Uniform { every } => SharingPlan::uniform(num_steps, *every).context("--share")?,
            Self::Ratio { ratio } => {
                let num_recompute = budget_for_ratio(num_steps, *ratio);
                SharingPlan::uniform_budget(num_steps, num_recompute).context("--share")?
            }
            Self::File(path) => fitting(path, &load(path)?, wanted)?,
        };
        Ok(Some(plan))
    }
}

fn load(path: &Path) -> Result<PlanFile> {
    let named = || format!("--share {}: {EXPECTED}", path.display());
    let json = atomic_file::read(path, PlanFile::MAX_JSON_BYTES).with_context(named)?;
    PlanFile::from_json(&json).with_context(named)
}

fn fitting(path: &Path, file: &PlanFile, wanted: &MadeFor) -> Result<SharingPlan> {
    let plan = file
        .plan_for(wanted)
        .with_context(|| format!("--share: the plan {} does not fit these settings", path.display()))?;
    Ok(plan.clone())
}

impl FromStr for SharingChoice {
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

/// As it is written on the command line; of a file its name alone, which is the same on every machine.
impl fmt::Display for SharingChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Uniform { every } => write!(f, "uniform:{every}"),
            Self::Ratio { ratio } => write!(f, "ratio:{ratio}"),
            Self::File(path) => write!(f, "{}", path.file_name().unwrap_or_default().display()),
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

    fn choice(text: &str) -> SharingChoice {
        text.parse().unwrap()
    }

    #[test]
    fn choices_are_written_as_they_are_read() {
        for text in ["none", "uniform:5", "ratio:0.8", "plan.json"] {
            assert_eq!(choice(text).to_string(), text);
        }
        for text in
            ["", "uniform:", "uniform:0", "uniform:-3", "uniform:2.5", "ratio:1", "ratio:NaN", "ratio:-0.1"]
        {
            assert_eq!(text.parse::<SharingChoice>().unwrap_err(), EXPECTED);
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
        let choice = SharingChoice::File(path.clone());
        assert_eq!(choice.plan(&wanted(10), 10).unwrap().unwrap().recompute_steps(), [0, 5]);

        let message = |wanted: &MadeFor| format!("{:#}", choice.plan(wanted, 10).unwrap_err());
        let other_model = wanted(10).with_model("ddt sha256:11");
        assert!(message(&other_model).contains("sha256:11"), "{}", message(&other_model));
        assert!(message(&wanted(11)).contains("num_steps 10, wanted 11"), "{}", message(&wanted(11)));
        choice.check_settings(&other_model).unwrap();
        assert!(choice.check_settings(&wanted(11)).is_err());
        std::fs::write(&path, "{").unwrap();
        assert!(message(&wanted(10)).contains("plan.json"));
        std::fs::remove_file(&path).unwrap();
        assert!(message(&wanted(10)).contains("uniform:R"));
    }
}
