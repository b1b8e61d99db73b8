//! Forecasts of the self-condition itself, to hold against those of the decoder's modulations.
//!
//! The two are the same where modulations are linear in the self-condition, as in DDT. In DiT^DH a SiLU stands between
//! them; a forecast of the self-condition then needs the modulations computed anew at every step.

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use candle_core::{Result as CandleResult, Tensor, bail};
use ddt::{
    flow::{CfgBatch, Decoupled, Guided, StepReport, solve},
    model::{
        DecoupledNetwork, Labelled, RecomputeSchedule, SampleOptions, Shared, SharedState, VelocityNetwork,
    },
};

/// The latents that [`ddt::model::sample`] makes with a plan, with forecasts of the self-condition.
///
/// # Errors
/// A network without two halves; a plan that does not fit.
pub(crate) fn sample_by_states(
    network: &dyn VelocityNetwork,
    noise: &Tensor,
    labels: &[u32],
    options: &SampleOptions<'_>,
) -> Result<Tensor> {
    let network = network.decoupled().context("the network has no condition encoder to share")?;
    let plan = options.plan.context("expected a plan")?;
    let schedule = RecomputeSchedule::new(plan, &options.grid, &options.guidance)?;
    let states = States { network, labelled: Labelled::new(network, labels, noise.device())? };
    let model = Guided { model: Shared::new(states, Some(schedule)), guidance: options.guidance };
    let (mut state, go_on) = (SharedState::default(), &mut |_: &StepReport<'_>| ControlFlow::Continue(()));
    Ok(solve(&model, options.solver, &options.grid, noise, &mut state, go_on)?)
}

/// A network whose self-conditions are cached, `(B or 2B, L, D)`.
struct States<'a> {
    network: &'a dyn DecoupledNetwork,
    labelled: Labelled<'a>,
}

impl Decoupled for States<'_> {
    type Cached = Tensor;

    fn encode(&self, x_t: &Tensor, t: f64, batch: CfgBatch) -> CandleResult<Tensor> {
        self.labelled.self_condition(x_t, t, batch)
    }

    fn decode(&self, x_t: &Tensor, cached: &[(&Tensor, f64)], batch: CfgBatch) -> CandleResult<Tensor> {
        let rows = batch.count(x_t.dim(0)?);
        let terms = cached.iter().map(|(state, weight)| state.narrow(0, 0, rows)? * *weight);
        let Some(state) = terms.reduce(|sum, term| sum? + term?) else {
            bail!("expected a cached self-condition, got none")
        };
        self.network.decode(&batch.stack(x_t)?, &self.network.modulations(&state?)?)
    }
}
