//! Sharing a self-condition between steps: reuse of the latest one, or a forecast from the latest few.

use candle_core::{Result, Tensor, bail};
use ddt_flow::{CfgBatch, ClassConditional, Decoupled, Evaluation, Guidance, TimeGrid};
use ddt_sharing::{ForecastOrder, PlanError, SharingPlan, forecast_weights};

/// Which batch to encode at each step of one run: a plan, with guidance looked ahead.
///
/// At a recompute step "no class" is encoded too if any step that will combine its self-condition is guided, so that a
/// later guided step finds it, computed at the same time as the conditional batch: as the published sampler, which
/// always encodes both, would have it.
#[derive(Debug, Clone, PartialEq)]
pub struct RecomputeSchedule {
    steps: Vec<Option<CfgBatch>>,
    order: ForecastOrder,
}

impl RecomputeSchedule {
    /// The schedule of a plan on a grid.
    ///
    /// # Errors
    /// [`PlanError`] when the plan has another number of steps.
    pub fn new(
        plan: &SharingPlan,
        grid: &TimeGrid,
        guidance: &Guidance,
    ) -> std::result::Result<Self, PlanError> {
        plan.check_num_steps(grid.num_steps())?;
        let guided = |i: usize| guidance.is_guided(grid.times()[i]);
        let steps = (0..grid.num_steps()).map(|i| {
            let both = || plan.users(i).any(guided);
            plan.is_recompute(i).then(|| if both() { CfgBatch::CondUncond } else { CfgBatch::Cond })
        });
        Ok(Self { steps: steps.collect(), order: plan.order() })
    }
}

/// A [`Decoupled`] network that follows a schedule (Eq. 6); without one it encodes at every evaluation.
///
/// A recompute step encodes at each of its evaluations, so a plan that recomputes everywhere changes
/// nothing with any solver. A step between recomputes combines the last recomputed self-conditions, of each step the
/// last evaluation's, with the weights of [`forecast_weights`]. What is cached is in the caller's [`SharedState`].
#[derive(Debug, Clone)]
pub struct Shared<M> {
    model: M,
    schedule: Option<RecomputeSchedule>,
}

/// The cache of a [`Shared`] network between evaluations.
#[derive(Debug, Clone)]
pub struct SharedState<K> {
    /// Oldest first.
    recomputed: Vec<Recomputed<K>>,
    pub(crate) calls: NetworkCalls,
}

/// A cached encoder output.
#[derive(Debug, Clone)]
struct Recomputed<K> {
    step: usize,
    t: f64,
    batch: CfgBatch,
    cached: K,
}

/// Calls of each half of the network; one without halves counts as a decoder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkCalls {
    /// Calls of the condition encoder.
    pub encoder: usize,
    /// Calls of the velocity decoder.
    pub decoder: usize,
}

impl<M> Shared<M> {
    /// Wraps `model`; `None` shares nothing.
    pub fn new(model: M, schedule: Option<RecomputeSchedule>) -> Self {
        Self { model, schedule }
    }
}

impl<K> SharedState<K> {
    /// Calls of each half so far.
    pub fn calls(&self) -> NetworkCalls {
        self.calls
    }
}

impl<K> Default for SharedState<K> {
    fn default() -> Self {
        Self { recomputed: Vec::new(), calls: NetworkCalls::default() }
    }
}

impl<M: Decoupled> ClassConditional for Shared<M> {
    type State = SharedState<M::Cached>;

    fn velocities(
        &self,
        x_t: &Tensor,
        at: Evaluation,
        batch: CfgBatch,
        state: &mut Self::State,
    ) -> Result<Tensor> {
        let (planned, order) = match &self.schedule {
            None => (Some(batch), ForecastOrder::Reuse),
            Some(schedule) => (schedule.steps.get(at.step).copied().flatten(), schedule.order),
        };
        let SharedState { recomputed, calls } = state;
        if let Some(planned) = planned {
            let encoded = if planned == CfgBatch::CondUncond { planned } else { batch };
            recomputed.retain(|it| it.step != at.step);
            // What no step will read again is dropped before the next is computed, for less peak memory.
            recomputed.drain(..(recomputed.len() + 1).saturating_sub(order.points()));
            let cached = self.model.encode(x_t, at.t, encoded)?;
            recomputed.push(Recomputed { step: at.step, t: at.t, batch: encoded, cached });
            calls.encoder += 1;
        }
        let unused = if planned.is_some() { recomputed.len() - 1 } else { 0 };
        let sources = &recomputed[unused..];
        if sources.is_empty() {
            bail!("step {}: expected a cached self-condition, got none; start at step 0", at.step);
        }
        if batch == CfgBatch::CondUncond && sources.iter().any(|it| it.batch == CfgBatch::Cond) {
            bail!("step {}: expected \"no class\" in the cached self-condition, got none", at.step);
        }
        let times: Vec<f64> = sources.iter().map(|it| it.t).collect();
        let cached = sources.iter().map(|it| &it.cached).zip(forecast_weights(&times, at.t));
        calls.decoder += 1;
        self.model.decode(x_t, &cached.collect::<Vec<_>>(), batch)
    }
}
