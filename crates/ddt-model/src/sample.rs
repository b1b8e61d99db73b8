//! Noise to latents in one call.

use std::ops::ControlFlow;

use candle_core::Tensor;
use ddt_flow::{Autoguided, ClassConditional, Guidance, Guided, Solver, StepReport, TimeGrid, solve};
use ddt_sharing::SharingPlan;

use crate::{
    error::ModelError,
    labelled::{Labelled, Whole},
    network::VelocityNetwork,
    shared::{NetworkCalls, RecomputeSchedule, Shared, SharedState},
};

/// How to sample.
#[derive(Debug, Clone)]
pub struct SampleOptions<'a> {
    /// The steps.
    pub grid: TimeGrid,
    /// How to take one.
    pub solver: &'a dyn Solver,
    /// How strongly to follow the class, and when.
    pub guidance: Guidance,
    /// Where to recompute the self-condition; everywhere without a plan.
    pub plan: Option<&'a SharingPlan>,
}

/// What sampling made.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// Latents at `t = 1`, `(B, C, H, W)` f32, in the scale the network was trained on.
    pub latents: Tensor,
    /// How often each half of the network ran; of a weaker network nothing is counted.
    pub calls: NetworkCalls,
}

/// What [`sample`] calls after every step; it may stop the run.
pub type OnStep<'a> = dyn FnMut(&StepReport<'_>) -> ControlFlow<()> + 'a;

/// Draws one latent for each label, starting from `noise`, `(B, C, H, W)` f32 standard normal.
///
/// Any family of network will do; a plan needs one of two halves. Any solver will do: its evaluations inside
/// a step are guided, and share a self-condition, as that step does.
/// `on_step` is called after every step and may stop the run.
///
/// # Errors
/// [`ModelError`] for a label, a noise shape or a plan that does not fit, or a plan for a network without
/// halves; for a latent that became non-finite, naming step and image; and when `on_step` stops the run.
pub fn sample(
    network: &dyn VelocityNetwork,
    noise: &Tensor,
    labels: &[u32],
    options: &SampleOptions<'_>,
    on_step: &mut OnStep<'_>,
) -> Result<Sampled, ModelError> {
    check_noise(network, noise, labels)?;
    match bind(network, labels, options, &options.guidance, noise)? {
        Bound::Halves(model) => {
            let mut state = SharedState::default();
            let latents = run(model, noise, options, &mut state, on_step)?;
            Ok(Sampled { latents, calls: state.calls() })
        }
        Bound::Whole(model) => {
            let mut calls = NetworkCalls::default();
            let latents = run(model, noise, options, &mut calls, on_step)?;
            Ok(Sampled { latents, calls })
        }
    }
}

/// [`sample`] guided away from a weaker network of the same task instead of "no class" (autoguidance; see
/// [`Autoguided`]).
///
/// A plan is the main network's; the weaker one, which runs at guided steps alone, shares nothing.
///
/// # Errors
/// As [`sample`], and [`ModelError::Weaker`] when the two networks are not of one task.
pub fn sample_autoguided(
    (network, weaker): (&dyn VelocityNetwork, &dyn VelocityNetwork),
    noise: &Tensor,
    labels: &[u32],
    options: &SampleOptions<'_>,
    on_step: &mut OnStep<'_>,
) -> Result<Sampled, ModelError> {
    check_noise(network, noise, labels)?;
    let task = |it: &dyn VelocityNetwork| (it.config().sizes.in_channels, it.config().sizes.num_classes);
    if task(network) != task(weaker) {
        return Err(ModelError::Weaker { expected: task(network), got: task(weaker) });
    }
    check_noise(weaker, noise, labels)?;
    let weaker = Whole::new(weaker, labels, noise.device())?;
    // The main network never sees "no class", so no step needs its rows.
    match bind(network, labels, options, &Guidance::none(), noise)? {
        Bound::Halves(model) => {
            let mut state = Default::default();
            let latents = run(Autoguided { model, guiding: weaker }, noise, options, &mut state, on_step)?;
            Ok(Sampled { latents, calls: state.0.calls() })
        }
        Bound::Whole(model) => {
            let mut state = Default::default();
            let latents = run(Autoguided { model, guiding: weaker }, noise, options, &mut state, on_step)?;
            Ok(Sampled { latents, calls: state.0 })
        }
    }
}

/// A network with the labels of this batch.
enum Bound<'a> {
    Halves(Shared<Labelled<'a>>),
    Whole(Whole<'a>),
}

/// `asked` is the guidance that says at which steps both halves of the rows will be asked for.
fn bind<'a>(
    network: &'a dyn VelocityNetwork,
    labels: &[u32],
    options: &SampleOptions<'_>,
    asked: &Guidance,
    noise: &Tensor,
) -> Result<Bound<'a>, ModelError> {
    let Some(ddt) = network.halves() else {
        if options.plan.is_some() {
            return Err(ModelError::NoHalves { family: network.config().family });
        }
        return Ok(Bound::Whole(Whole::new(network, labels, noise.device())?));
    };
    let schedule = options.plan.map(|plan| RecomputeSchedule::new(plan, &options.grid, asked)).transpose()?;
    Ok(Bound::Halves(Shared::new(Labelled::new(ddt, labels, noise.device())?, schedule)))
}

fn run<M: ClassConditional>(
    model: M,
    noise: &Tensor,
    options: &SampleOptions<'_>,
    state: &mut M::State,
    on_step: &mut OnStep<'_>,
) -> Result<Tensor, ModelError> {
    let model = Guided { model, guidance: options.guidance };
    Ok(solve(&model, options.solver, &options.grid, noise, state, on_step)?)
}

fn check_noise(network: &dyn VelocityNetwork, noise: &Tensor, labels: &[u32]) -> Result<(), ModelError> {
    let cfg = &network.config().sizes;
    let fits = match *noise.dims() {
        [b, c, h, w] => {
            let whole = |side: usize| side > 0 && side.is_multiple_of(cfg.patch_size);
            b > 0 && b == labels.len() && c == cfg.in_channels && whole(h) && whole(w)
        }
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(ModelError::Noise {
        got: noise.dims().to_vec(),
        images: labels.len(),
        channels: cfg.in_channels,
        patch_size: cfg.patch_size,
    })
}
