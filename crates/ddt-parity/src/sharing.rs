//! The sharing planner.

use anyhow::Result;
use candle_core::DType;
use ddt_sharing::{PlanWithCost, Similarity, SimilarityAccumulator, optimal_plan};
use serde::Deserialize;

use crate::{Comparison, Fixture, Tolerance};

#[derive(Debug, Deserialize)]
struct Plan {
    budget: usize,
    recompute: Vec<usize>,
    cost: f64,
}

impl Plan {
    fn compare(&self, name: &str, got: &PlanWithCost) -> Result<[Comparison; 2]> {
        let steps = |it: &[usize]| it.iter().map(|i| *i as f64).collect::<Vec<_>>();
        let (got_steps, want) = (steps(got.plan.recompute_steps()), steps(&self.recompute));
        let cost = format!("{name}.cost");
        Ok([
            Comparison::numbers(&format!("{name}.recompute"), &got_steps, &want, Tolerance::Exact)?,
            Comparison::numbers(&cost, &[got.cost], &[self.cost], Tolerance::PLAN_COST)?,
        ])
    }
}

/// Similarity of self-conditions, then the plan for one budget.
pub(crate) fn sharing_states(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let states = fixture.tensor("in.states")?.to_dtype(DType::F32)?; // (steps, images, tokens, channels)
    let (num_steps, images, _, channels) = states.dims4()?;
    let mut accumulator = SimilarityAccumulator::new(num_steps)?;
    for image in 0..images {
        let steps = (0..num_steps).map(|i| states.get(i)?.get(image)?.flatten_all()?.to_vec1::<f32>());
        accumulator.add(&steps.collect::<candle_core::Result<Vec<_>>>()?, channels)?;
    }
    let similarity = accumulator.similarity()?;
    let want: Vec<f64> = fixture.tensor("out.similarity")?.flatten_all()?.to_vec1()?;
    let plan = Plan {
        budget: fixture.json("budget")?,
        recompute: fixture.json("recompute")?,
        cost: fixture.json("cost")?,
    };
    let found = optimal_plan(&similarity, plan.budget)?;
    let compared = Comparison::numbers("out.similarity", similarity.values(), &want, Tolerance::SIMILARITY)?;
    let mut all = vec![compared];
    all.extend(plan.compare("plan", &found)?);
    Ok(all)
}

/// The plan for each of several budgets.
pub(crate) fn sharing_plan(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let matrix = fixture.tensor("in.similarity")?.to_dtype(DType::F64)?;
    let similarity = Similarity::from_matrix(matrix.flatten_all()?.to_vec1()?, matrix.dim(0)?)?;
    let plans: Vec<Plan> = fixture.json("plans")?;
    let mut all = Vec::new();
    for plan in &plans {
        let found = optimal_plan(&similarity, plan.budget)?;
        all.extend(plan.compare(&format!("budget-{}", plan.budget), &found)?);
    }
    Ok(all)
}
