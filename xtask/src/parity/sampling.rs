//! Whole sampling runs.

use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use ddt_flow::{Guidance, TimeGrid, solver_by_name};
use ddt_model::{Ddt, SampleOptions, sample};
use ddt_sharing::SharingPlan;
use serde::Deserialize;

use super::{compare::Comparison, fixture::Fixture};

#[derive(Debug, Deserialize)]
struct Case {
    method: String,
    #[serde(default)]
    order: usize,
    steps: usize,
    guidance: f64,
    interval: (f64, f64),
    timeshift: f64,
    last_step: f64,
    recompute: Option<Vec<usize>>,
    refresh: Option<usize>,
}

impl Case {
    fn solver_name(&self) -> Result<String> {
        match self.method.as_str() {
            "euler" => Ok("euler".to_owned()),
            "adams" => Ok(format!("adams{}", self.order)),
            other => bail!("expected method euler or adams, got {other:?}"),
        }
    }

    fn plan(&self) -> Result<Option<SharingPlan>> {
        Ok(match (&self.recompute, self.refresh) {
            (Some(steps), _) => Some(SharingPlan::new(steps.clone(), self.steps)?),
            (None, Some(every)) => Some(SharingPlan::uniform(self.steps, every)?),
            (None, None) => None,
        })
    }
}

/// One final latent for each entry of `cases`.
pub(crate) fn ddt_sample(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let network = Ddt::new(&fixture.sizes()?, fixture.builder("model.")?)?;
    let noise = fixture.tensor("in.noise")?;
    let labels: Vec<u32> = fixture.labels("in.labels")?.to_vec1()?;
    let cases: Vec<Case> = fixture.json("cases")?;
    let compare = |(i, case): (usize, &Case)| -> Result<Comparison> {
        let solver = solver_by_name(&case.solver_name()?)?;
        let plan = case.plan()?;
        let options = SampleOptions {
            grid: TimeGrid::new(case.steps, Some(case.last_step), case.timeshift)?,
            solver: solver.as_ref(),
            guidance: Guidance::new(case.guidance, case.interval)?,
            plan: plan.as_ref(),
        };
        let sampled = sample(&network, &noise, &labels, &options, &mut |_| ControlFlow::Continue(()))?;
        let name = format!("out.{i}");
        Comparison::tensors(&name, &sampled.latents, &fixture.tensor(&name)?, fixture.tolerance(1e-4))
    };
    cases.iter().enumerate().map(|case| compare(case).with_context(|| format!("case {}", case.0))).collect()
}
