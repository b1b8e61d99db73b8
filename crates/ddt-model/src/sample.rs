//! Noise to latents in one call.

use std::ops::ControlFlow;

use candle_core::{Device, Result as CandleResult, Tensor};
use ddt_flow::{
    Autoguided, CfgBatch, ClassConditional, Decoupled, Evaluation, Guidance, Guided, Solver, StepReport,
    TimeGrid, solve,
};
use ddt_sharing::SharingPlan;

use crate::{
    config::DdtConfig,
    error::ModelError,
    network::{DecoderModulations, DecoupledNetwork, VelocityNetwork},
    shared::{NetworkCalls, RecomputeSchedule, Shared, SharedState},
};

/// Options of [`sample`].
#[derive(Debug, Clone)]
pub struct SampleOptions<'a> {
    /// Times of the steps.
    pub grid: TimeGrid,
    /// Solver that takes them.
    pub solver: &'a dyn Solver,
    /// Scale and interval of classifier-free guidance.
    pub guidance: Guidance,
    /// Steps at which to recompute the self-condition, and the order of forecasts elsewhere; all steps without a plan.
    pub plan: Option<&'a SharingPlan>,
}

/// The result of sampling.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// Latents at `t = 1`, `(B, C, H, W)` f32, in the scale the network was trained on.
    pub latents: Tensor,
    /// Calls of each half of the network; those of a guiding network are not counted.
    pub calls: NetworkCalls,
}

/// Called by [`sample`] after every step; it may stop the run.
pub type OnStep<'a> = dyn FnMut(&StepReport<'_>) -> ControlFlow<()> + 'a;

/// Generates one latent for each label, starting from `noise`, `(B, C, H, W)` f32 standard normal.
///
/// A plan needs a [decoupled](VelocityNetwork::decoupled) network. With any solver, the evaluations inside a step are
/// guided, and share a self-condition, as that step does.
/// `on_step` is called after every step and may stop the run.
///
/// # Errors
/// [`ModelError`] for a label, a noise shape or a plan that does not fit; for a latent that became non-finite,
/// naming step and image; and when `on_step` stops the run.
pub fn sample(
    network: &dyn VelocityNetwork,
    noise: &Tensor,
    labels: &[u32],
    options: &SampleOptions<'_>,
    on_step: &mut OnStep<'_>,
) -> Result<Sampled, ModelError> {
    check_batch(&network.config().sizes, noise, labels)?;
    let labels = Labels::new(labels, &network.config().sizes, noise.device())?;
    let model = bind(network, labels, options, &options.guidance)?;
    let mut state = SharedState::default();
    let latents = run(model, noise, options, &mut state, on_step)?;
    Ok(Sampled { latents, calls: state.calls() })
}

/// [`sample`] guided away from another network of the same task instead of "no class" (autoguidance; see
/// [`Autoguided`]).
///
/// A plan is for the main network; the guiding network, which runs at guided steps only, shares nothing.
///
/// # Errors
/// As [`sample`], and when the two networks have other channels or classes.
pub fn sample_autoguided(
    network: &dyn VelocityNetwork,
    guiding: &dyn VelocityNetwork,
    noise: &Tensor,
    labels: &[u32],
    options: &SampleOptions<'_>,
    on_step: &mut OnStep<'_>,
) -> Result<Sampled, ModelError> {
    let (cfg, guiding_cfg) = (&network.config().sizes, &guiding.config().sizes);
    let task = |it: &DdtConfig| (it.in_channels, it.num_classes);
    if task(cfg) != task(guiding_cfg) {
        return Err(ModelError::Input(format!(
            "expected a guiding network of {} channels and {} classes, as the guided one, got {} and {}",
            cfg.in_channels, cfg.num_classes, guiding_cfg.in_channels, guiding_cfg.num_classes
        )));
    }
    check_batch(cfg, noise, labels)?;
    check_batch(guiding_cfg, noise, labels)?;
    let labels = Labels::new(labels, cfg, noise.device())?;
    let model = Autoguided {
        // The main network never sees "no class", so no step needs it encoded.
        model: bind(network, labels.clone(), options, &Guidance::none())?,
        guiding: Model::Whole(guiding, labels),
    };
    let mut state = Default::default();
    let latents = run(model, noise, options, &mut state, on_step)?;
    Ok(Sampled { latents, calls: state.0.calls() })
}

/// Checks that `noise`, `(B, C, H, W)`, and one label per image fit a network of these sizes.
///
/// # Errors
/// [`ModelError::Input`] says what would fit.
pub fn check_batch(cfg: &DdtConfig, noise: &Tensor, labels: &[u32]) -> Result<(), ModelError> {
    let (images, patch_size) = (labels.len(), cfg.patch_size);
    let whole = |side: usize| side > 0 && side.is_multiple_of(patch_size);
    let fits = matches!(*noise.dims(), [b, c, h, w]
        if b > 0 && b == images && c == cfg.in_channels && whole(h) && whole(w));
    if !fits {
        return Err(ModelError::Input(format!(
            "noise of shape {:?} does not fit, expected ({images}, {}, H, W) with H and W positive multiples of \
             {patch_size}",
            noise.dims(),
            cfg.in_channels
        )));
    }
    check_labels(cfg, labels)
}

fn check_labels(cfg: &DdtConfig, labels: &[u32]) -> Result<(), ModelError> {
    let num_classes = cfg.num_classes;
    match labels.iter().enumerate().find(|(_, label)| **label as usize > num_classes) {
        None => Ok(()),
        Some((image, label)) => Err(ModelError::Input(format!(
            "label {label} of image {image} is out of range, expected a class in 0..{num_classes}, or {num_classes} \
             for no class"
        ))),
    }
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

/// Binds one batch's labels; `guidance` says at which steps "no class" is asked for.
fn bind<'a>(
    network: &'a dyn VelocityNetwork,
    labels: Labels,
    options: &SampleOptions<'_>,
    guidance: &Guidance,
) -> Result<Model<'a>, ModelError> {
    match (network.decoupled(), options.plan) {
        (Some(network), plan) => {
            let schedule = plan.map(|it| RecomputeSchedule::new(it, &options.grid, guidance)).transpose()?;
            Ok(Model::Decoupled(Shared::new(Labelled { network, labels }, schedule)))
        }
        (None, None) => Ok(Model::Whole(network, labels)),
        (None, Some(_)) => Err(ModelError::Input(format!(
            "a network of family {:?} has no condition encoder to share, expected a decoupled one, or no plan",
            network.config().family
        ))),
    }
}

/// A network with the labels of one batch.
enum Model<'a> {
    Decoupled(Shared<Labelled<'a>>),
    Whole(&'a dyn VelocityNetwork, Labels),
}

impl ClassConditional for Model<'_> {
    type State = SharedState<DecoderModulations>;

    fn velocities(
        &self,
        x_t: &Tensor,
        at: Evaluation,
        batch: CfgBatch,
        state: &mut Self::State,
    ) -> CandleResult<Tensor> {
        match self {
            Self::Decoupled(model) => model.velocities(x_t, at, batch, state),
            Self::Whole(network, labels) => {
                state.calls.decoder += 1;
                let (t, labels) = labels.at(at.t, batch)?;
                network.forward(&batch.stack(x_t)?, &t, labels)
            }
        }
    }
}

/// A decoupled network and one batch's labels: what [`Shared`] wraps.
#[derive(Debug, Clone)]
pub struct Labelled<'a> {
    network: &'a dyn DecoupledNetwork,
    labels: Labels,
}

impl<'a> Labelled<'a> {
    /// Binds one label per image.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a label above `num_classes`.
    pub fn new(
        network: &'a dyn DecoupledNetwork,
        labels: &[u32],
        device: &Device,
    ) -> Result<Self, ModelError> {
        Ok(Self { network, labels: Labels::new(labels, &network.config().sizes, device)? })
    }

    /// The self-condition of the batch with its classes, or of both batches, "no class" second.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W) -> (B or 2B, L, D)`.
    ///
    /// # Errors
    /// On any other shape.
    pub fn self_condition(&self, x_t: &Tensor, t: f64, batch: CfgBatch) -> CandleResult<Tensor> {
        let (t, labels) = self.labels.at(t, batch)?;
        self.network.encode(&batch.stack(x_t)?, &t, labels)
    }

    /// The decoder's modulations under a self-condition.
    ///
    /// # Errors
    /// On any shape but that of [`self_condition`](Self::self_condition)'s result.
    pub fn modulations(&self, self_condition: &Tensor) -> CandleResult<DecoderModulations> {
        self.network.modulations(self_condition)
    }
}

impl Decoupled for Labelled<'_> {
    type Cached = DecoderModulations;

    fn encode(&self, x_t: &Tensor, t: f64, batch: CfgBatch) -> CandleResult<DecoderModulations> {
        self.modulations(&self.self_condition(x_t, t, batch)?)
    }

    fn decode(
        &self,
        x_t: &Tensor,
        cached: &[(&DecoderModulations, f64)],
        batch: CfgBatch,
    ) -> CandleResult<Tensor> {
        let xs = batch.stack(x_t)?;
        let batch = xs.dim(0)?;
        let narrow = |(it, weight): &(&DecoderModulations, f64)| Ok((it.narrow_batch(batch)?, *weight));
        let narrowed = cached.iter().map(narrow).collect::<CandleResult<Vec<_>>>()?;
        let terms: Vec<_> = narrowed.iter().map(|(it, weight)| (it, *weight)).collect();
        self.network.decode(&xs, &DecoderModulations::weighted_sum(&terms)?)
    }
}

/// Labels of one batch: its classes, and the same followed by as many "no class".
#[derive(Debug, Clone)]
struct Labels {
    cond: Tensor,
    cond_uncond: Tensor,
}

impl Labels {
    fn new(labels: &[u32], cfg: &DdtConfig, device: &Device) -> Result<Self, ModelError> {
        check_labels(cfg, labels)?;
        let cond = Tensor::new(labels, device)?;
        let uncond = Tensor::full(cfg.num_classes as u32, labels.len(), device)?;
        Ok(Self { cond_uncond: Tensor::cat(&[&cond, &uncond], 0)?, cond })
    }

    /// Time and label of every row.
    fn at(&self, t: f64, batch: CfgBatch) -> CandleResult<(Tensor, &Tensor)> {
        let labels = match batch {
            CfgBatch::Cond => &self.cond,
            CfgBatch::CondUncond => &self.cond_uncond,
        };
        Ok((Tensor::full(t as f32, labels.dim(0)?, labels.device())?, labels))
    }
}
