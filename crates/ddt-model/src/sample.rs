//! Noise to latents in one call.

use std::ops::ControlFlow;

use candle_core::Tensor;
use ddt_flow::{Guidance, Guided, Solver, StepReport, TimeGrid, solve};
use ddt_sharing::SharingPlan;

use crate::{
    ddt::Ddt,
    error::ModelError,
    labelled::Labelled,
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
    /// How often each half of the network ran.
    pub calls: NetworkCalls,
}

/// Draws one latent for each label, starting from `noise`, `(B, C, H, W)` f32 standard normal.
///
/// `on_step` is called after every step and may stop the run.
///
/// # Errors
/// [`ModelError`] for a label, a noise shape or a plan that does not fit; for a latent that became
/// non-finite, naming step and image; and when `on_step` stops the run.
pub fn sample(
    network: &Ddt,
    noise: &Tensor,
    labels: &[u32],
    options: &SampleOptions<'_>,
    on_step: &mut dyn FnMut(&StepReport<'_>) -> ControlFlow<()>,
) -> Result<Sampled, ModelError> {
    check_noise(network, noise, labels)?;
    let schedule = match options.plan {
        None => None,
        Some(plan) => Some(RecomputeSchedule::new(plan, &options.grid, &options.guidance)?),
    };
    let shared = Shared::new(Labelled::new(network, labels, noise.device())?, schedule);
    let model = Guided { model: shared, guidance: options.guidance };
    let mut state = SharedState::default();
    let latents = solve(&model, options.solver, &options.grid, noise, &mut state, on_step)?;
    Ok(Sampled { latents, calls: state.calls() })
}

fn check_noise(network: &Ddt, noise: &Tensor, labels: &[u32]) -> Result<(), ModelError> {
    let cfg = network.config();
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
