//! Keeping one self-condition for several steps.

use candle_core::{Result, Tensor, bail};
use ddt_flow::{CfgBatch, ClassConditional, Decoupled, Evaluation, Guidance, TimeGrid};
use ddt_sharing::{PlanError, SharingPlan};

/// What to encode at each step of one run: a plan, with guidance looked ahead.
///
/// At a recompute step the "no class" rows are encoded too if any step before the next recompute is
/// guided, so that a later guided step finds them, computed at the same time as the class rows: as the
/// published sampler, which always encodes both, would have them.
#[derive(Debug, Clone, PartialEq)]
pub struct RecomputeSchedule {
    rows: Vec<Option<CfgBatch>>,
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
        let rows = (0..grid.num_steps()).map(|i| {
            let both = || (i..plan.next_recompute(i)).any(guided);
            plan.is_recompute(i).then(|| if both() { CfgBatch::CondUncond } else { CfgBatch::Cond })
        });
        Ok(Self { rows: rows.collect() })
    }
}

/// A [`Decoupled`] network that obeys a schedule (Eq. 6); without one it encodes at every evaluation.
///
/// A recompute step encodes at each of its evaluations, so a plan that recomputes everywhere changes
/// nothing with any solver. The kept self-condition, and all that follows from it alone, lives in the
/// caller's [`SharedState`].
#[derive(Debug, Clone)]
pub struct Shared<M> {
    model: M,
    schedule: Option<RecomputeSchedule>,
}

/// What a [`Shared`] network keeps between evaluations.
#[derive(Debug, Clone)]
pub struct SharedState<K> {
    kept: Option<(K, CfgBatch)>,
    calls: NetworkCalls,
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
        Self { kept: None, calls: NetworkCalls::default() }
    }
}

impl<M: Decoupled> ClassConditional for Shared<M> {
    type State = SharedState<M::Cached>;

    fn velocities(
        &self,
        x_t: &Tensor,
        at: Evaluation,
        rows: CfgBatch,
        state: &mut Self::State,
    ) -> Result<Tensor> {
        let planned = match &self.schedule {
            None => Some(rows),
            Some(schedule) => schedule.rows.get(at.step).copied().flatten(),
        };
        if let Some(planned) = planned {
            let encode = if planned == CfgBatch::CondUncond { CfgBatch::CondUncond } else { rows };
            // What is kept goes before its successor is made: together they are the peak of memory.
            state.kept = None;
            state.kept = Some((self.model.encode(x_t, at.t, encode)?, encode));
            state.calls.encoder += 1;
        }
        let kept = match &state.kept {
            Some((kept, have)) if *have == CfgBatch::CondUncond || rows == CfgBatch::Cond => kept,
            Some(_) => bail!("step {}: expected both halves to be kept, got the class half alone", at.step),
            None => bail!("step {}: expected a kept self-condition, got none; start at step 0", at.step),
        };
        state.calls.decoder += 1;
        self.model.decode(x_t, kept, rows)
    }
}
