//! Reusing one self-condition for several steps.

use candle_core::{Result, Tensor, bail};
use ddt_flow::{CfgBatch, ClassConditional, Decoupled, Evaluation, Guidance, TimeGrid};
use ddt_sharing::{PlanError, SharingPlan};

/// Which batch to encode at each step of one run: a plan, with guidance looked ahead.
///
/// At a recompute step "no class" is encoded too if any step before the next recompute is guided, so that a later
/// guided step finds it, computed at the same time as the conditional batch: as the published sampler, which always
/// encodes both, would have it.
#[derive(Debug, Clone, PartialEq)]
pub struct RecomputeSchedule {
    steps: Vec<Option<CfgBatch>>,
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
            let both = || (i..plan.next_recompute(i)).any(guided);
            plan.is_recompute(i).then(|| if both() { CfgBatch::CondUncond } else { CfgBatch::Cond })
        });
        Ok(Self { steps: steps.collect() })
    }
}

/// A [`Decoupled`] network that follows a schedule (Eq. 6); without one it encodes at every evaluation.
///
/// A recompute step encodes at each of its evaluations, so a plan that recomputes everywhere changes
/// nothing with any solver. The cached self-condition, and all that follows from it alone, is in the
/// caller's [`SharedState`].
#[derive(Debug, Clone)]
pub struct Shared<M> {
    model: M,
    schedule: Option<RecomputeSchedule>,
}

/// The cache of a [`Shared`] network between evaluations.
#[derive(Debug, Clone)]
pub struct SharedState<K> {
    cached: Option<(K, CfgBatch)>,
    pub(crate) calls: NetworkCalls,
}

/// How often each half of the network ran; one without halves counts as a decoder.
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
    /// How often each half ran so far.
    pub fn calls(&self) -> NetworkCalls {
        self.calls
    }
}

impl<K> Default for SharedState<K> {
    fn default() -> Self {
        Self { cached: None, calls: NetworkCalls::default() }
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
        let planned = match &self.schedule {
            None => Some(batch),
            Some(schedule) => schedule.steps.get(at.step).copied().flatten(),
        };
        if let Some(planned) = planned {
            let encoded = if planned == CfgBatch::CondUncond { planned } else { batch };
            // Dropped before the next one is computed, to halve peak memory.
            state.cached = None;
            state.cached = Some((self.model.encode(x_t, at.t, encoded)?, encoded));
            state.calls.encoder += 1;
        }
        let cached = match &state.cached {
            Some((cached, have)) if *have == CfgBatch::CondUncond || batch == CfgBatch::Cond => cached,
            Some(_) => {
                bail!("step {}: expected \"no class\" in the cached self-condition, got none", at.step)
            }
            None => bail!("step {}: expected a cached self-condition, got none; start at step 0", at.step),
        };
        state.calls.decoder += 1;
        self.model.decode(x_t, cached, batch)
    }
}
