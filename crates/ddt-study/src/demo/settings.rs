//! Settings of the demo's measurements.

use std::{fmt, path::PathBuf};

use clap::{ValueEnum, value_parser};
use ddt::sharing::{ForecastOrder, budget_for_ratio};
use serde::{Deserialize, Serialize};

use crate::metric::Seen;

/// Ratios of the paper's Tab. 4.
pub(crate) const RATIOS: [f64; 6] = [0.5, 0.66, 0.75, 0.8, 0.83, 0.87];

/// Guidance of the paper's Fig. 9, and the lower ends of its intervals.
pub(crate) const SCALES: [f64; 9] = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6];
/// Lower ends of the intervals of Fig. 9.
pub(crate) const LOWER_ENDS: [f64; 4] = [0.0, 0.2, 0.3, 0.35];

/// Solvers, time shifts and numbers of steps of the shape of the paper's Fig. 4.
pub(crate) const SOLVERS: [&str; 2] = ["euler", "adams2"];
/// Time shifts: none, and the best of Fig. 4's four.
pub(crate) const TIMESHIFTS: [f64; 2] = [1.0, 2.0];
/// Numbers of steps; Fig. 4 has 5 to 12.
pub(crate) const STEPS: [usize; 6] = [5, 10, 15, 20, 30, 50];

/// Guidance of the sharing table and of the steps: the demo's usual one.
pub(crate) const DEMO_GUIDANCE: f64 = 4.0;

/// Measures the demo network by a small classifier's view of its images: guidance, sharing, steps, the autoencoder.
///
/// The same command resumes what was stopped or killed.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoStudy {
    /// CIFAR-10 as image files: `train/<class>/<name>.jpg` and the same under test
    #[arg(long, value_name = "DIR", default_value = "out/cifar10")]
    pub photos: PathBuf,
    /// Weights of the classifier, as `ddt study classifier` writes them [default: the bundled ones]
    #[arg(long, value_name = "PATH")]
    pub classifier: Option<PathBuf>,
    /// Measurements to make [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Group>,
    /// Images of each setting
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = value_parser!(u32).range(200..=100_000))]
    pub images: u32,
    /// Steps of the sharing table
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub steps: usize,
    /// Steps of the guidance sweep
    #[arg(long, value_name = "N", default_value_t = 25)]
    pub sweep_steps: usize,
    /// Weights of CIFAR-10's classes to measure instead of the demo
    #[arg(long, value_name = "PATH", default_value = "demo")]
    pub weights: PathBuf,
    /// Folder of the results; the same folder resumes them
    #[arg(long, value_name = "DIR", default_value = "out/measure-demo")]
    pub out: PathBuf,
}

impl DemoStudy {
    /// The groups to measure.
    pub(crate) fn groups(&self) -> &[Group] {
        if self.only.is_empty() { Group::value_variants() } else { &self.only }
    }
}

/// Settings that are measured together, and become one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// Photos, the autoencoder, and the demo with and without guidance
    Floor,
    /// Sharing the self-condition: the shape of the paper's Tab. 4
    Sharing,
    /// Guidance by interval: the shape of Fig. 9
    Guidance,
    /// Number of steps by solver and time shift: the shape of Fig. 4
    Steps,
}

/// The measures of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// The classifier's view.
    #[serde(flatten)]
    pub(crate) seen: Seen,
    /// Seconds of generating and measuring; 0 for photos.
    pub(crate) seconds: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {:.0} s", self.seen, self.seconds)
    }
}

/// One set of images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Setting {
    /// Test photos: the floor that no generated images go below.
    Photos,
    /// Test photos after encoding and decoding: the cost of the autoencoder.
    Reconstructions,
    /// Images of the demo by Euler steps.
    Generated(Sampling),
    /// Images of the demo by other steps.
    Stepped(Stepping),
}

/// Settings of sampling with Euler steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sampling {
    /// Euler steps.
    pub(crate) steps: usize,
    /// Strength of guidance, 1 for none.
    pub(crate) guidance: f64,
    /// Lower end of its interval; the upper is 1.
    pub(crate) from: f64,
    /// Steps at which the condition encoder runs; `None` is all of them.
    pub(crate) sharing: Option<Sharing>,
}

/// Settings of sampling with any solver, the demo's usual guidance and the encoder at every step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Stepping {
    /// Number of steps; all of one length before the shift.
    pub(crate) steps: usize,
    /// The solver.
    pub(crate) solver: &'static str,
    /// Above 1 for more of them near noise.
    pub(crate) timeshift: f64,
}

/// Plans of a number of recomputes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sharing {
    /// Order of the forecasts between recomputes.
    pub(crate) order: ForecastOrder,
    /// Whether the planner chooses the steps; else they are spaced evenly.
    pub(crate) planned: bool,
    /// Steps at which the condition encoder runs.
    pub(crate) budget: usize,
}

/// The form used in results files.
impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.planned { "Optimal" } else { "Uniform" };
        write!(f, "{kind}({})", self.budget)?;
        if self.order != ForecastOrder::Reuse {
            write!(f, " order {}", self.order)?;
        }
        Ok(())
    }
}

/// The kinds of plans of the sharing table: order, and whether the planner chooses the steps.
pub(crate) const PLANS: [(ForecastOrder, bool); 6] = [
    (ForecastOrder::Reuse, false),
    (ForecastOrder::Reuse, true),
    (ForecastOrder::Linear, false),
    (ForecastOrder::Linear, true),
    (ForecastOrder::Quadratic, false),
    (ForecastOrder::Quadratic, true),
];

impl Setting {
    /// Its name in the file of results.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Photos => "photos".to_owned(),
            Self::Reconstructions => "reconstructions".to_owned(),
            Self::Generated(Sampling { steps, guidance, from, sharing }) => {
                let sharing = sharing.map_or("None".to_owned(), |it| it.to_string());
                format!("steps {steps} guidance {guidance} from {from} sharing {sharing}")
            }
            Self::Stepped(Stepping { steps, solver, timeshift }) => {
                format!("steps {steps} solver {solver} shift {timeshift}")
            }
        }
    }
}

/// Sampling without sharing, of the guidance sweep.
pub(crate) fn swept(steps: usize, guidance: f64, from: f64) -> Setting {
    // Guidance 1 is none, in whatever interval.
    let from = if guidance == 1.0 { 0.0 } else { from };
    Setting::Generated(Sampling { steps, guidance, from, sharing: None })
}

/// Sampling of the sharing table.
pub(crate) fn shared(steps: usize, sharing: Option<Sharing>) -> Setting {
    Setting::Generated(Sampling { steps, guidance: DEMO_GUIDANCE, from: 0.0, sharing })
}

/// Steps at which the encoder runs for each ratio, each number once.
pub(crate) fn budgets(steps: usize) -> Vec<usize> {
    let mut budgets: Vec<usize> = RATIOS.iter().map(|ratio| budget_for_ratio(steps, *ratio)).collect();
    budgets.dedup();
    budgets
}

/// All settings of some groups, each once.
pub(crate) fn settings(groups: &[Group], steps: usize, sweep_steps: usize) -> Vec<Setting> {
    let of = |group: &Group| -> Vec<Setting> {
        match group {
            Group::Floor => {
                vec![Setting::Photos, Setting::Reconstructions, swept(steps, 1.0, 0.0), shared(steps, None)]
            }
            Group::Sharing => {
                let plans = |budget| {
                    PLANS.map(|(order, planned)| shared(steps, Some(Sharing { order, planned, budget })))
                };
                let unshared = [shared(steps, None)];
                unshared.into_iter().chain(budgets(steps).into_iter().flat_map(plans)).collect()
            }
            Group::Guidance => {
                let sweep = |from| SCALES.map(|guidance| swept(sweep_steps, guidance, from));
                LOWER_ENDS.into_iter().flat_map(sweep).collect()
            }
            Group::Steps => {
                let stepped = |solver, timeshift| {
                    STEPS.map(|steps| Setting::Stepped(Stepping { steps, solver, timeshift }))
                };
                let shifts = |solver| TIMESHIFTS.into_iter().flat_map(move |it| stepped(solver, it));
                SOLVERS.into_iter().flat_map(shifts).collect()
            }
        }
    };
    let mut all: Vec<Setting> = groups.iter().flat_map(of).collect();
    let mut keys = std::collections::BTreeSet::new();
    all.retain(|it| keys.insert(it.key()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_there_once() {
        let count = |groups: &[Group]| settings(groups, 50, 25).len();
        // Photos, reconstructions, with and without guidance.
        assert_eq!(count(&[Group::Floor]), 4);
        // 6 ratios of 6 kinds of plans, beside what the first group has.
        assert_eq!(count(&[Group::Floor, Group::Sharing]), 4 + 36);
        // 4 x 8 and one without guidance; 2 solvers, 2 shifts, 6 numbers of steps.
        assert_eq!(count(Group::value_variants()), 4 + 36 + 33 + 24);
        assert_eq!(budgets(50), [25, 17, 13, 10, 9, 7]);
    }

    #[test]
    fn names_in_files_stay_what_they_are() {
        let mut sharing = Sharing { order: ForecastOrder::Reuse, planned: false, budget: 25 };
        let key = |it| shared(50, Some(it)).key();
        assert_eq!(key(sharing), "steps 50 guidance 4 from 0 sharing Uniform(25)");
        (sharing.order, sharing.planned) = (ForecastOrder::Quadratic, true);
        assert_eq!(key(sharing), "steps 50 guidance 4 from 0 sharing Optimal(25) order 2");
        assert_eq!(swept(25, 1.2, 0.35).key(), "steps 25 guidance 1.2 from 0.35 sharing None");
    }
}
