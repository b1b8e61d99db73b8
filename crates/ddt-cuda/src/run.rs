//! One run: what is known before its first step, and the loop over its steps.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use ddt_blocks::AxialRope2d;
use ddt_flow::{FlowError, Guidance, Step, TimeGrid};
use ddt_model::{DdtConfig, NetworkCalls, Sampled, check_batch};
use ddt_sharing::SharingPlan;

use crate::{
    error::GpuError,
    program::{Batch, Precision, Programs},
    step_kind::{StepKind, step_kinds},
};

/// How to sample with Euler's method; as [`SampleOptions`](ddt_model::SampleOptions), which has any solver.
#[derive(Debug, Clone)]
pub struct EulerOptions<'a> {
    /// The steps.
    pub grid: TimeGrid,
    /// How strongly to follow the class, and when.
    pub guidance: Guidance,
    /// Where to recompute the self-condition; everywhere without a plan.
    pub plan: Option<&'a SharingPlan>,
}

/// A step of a run: its kind, and its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunStep {
    /// Its operations.
    pub kind: StepKind,
    /// `t`, `dt`, guidance scale, and the number of guided channels.
    pub scalars: [f32; 4],
    /// The step of the grid.
    pub step: Step,
}

/// All that an executor needs to know, before the first step.
#[derive(Debug, Clone)]
pub struct Run {
    /// Size and precision of the batch.
    pub batch: Batch,
    /// (B, C, H, W).
    pub noise: Vec<f32>,
    /// (2B): the labels, then "no class".
    pub labels: Vec<u32>,
    /// The steps.
    pub steps: Vec<RunStep>,
}

impl Run {
    /// Checks noise and labels as the CPU's sampler does, and lays out the steps.
    ///
    /// # Errors
    /// Noise, labels or a plan that do not fit.
    pub fn new(
        cfg: &DdtConfig,
        precision: Precision,
        noise: &Tensor,
        labels: &[u32],
        options: &EulerOptions<'_>,
    ) -> Result<Self, GpuError> {
        check_batch(cfg, noise, labels)?;
        let (images, _, height, width) = noise.dims4()?;
        let batch = Batch { images, height, width, precision };
        let none = std::iter::repeat_n(cfg.num_classes as u32, labels.len());
        let kinds = step_kinds(&options.grid, &options.guidance, options.plan)?;
        let channels =
            options.guidance.channels().map_or(cfg.in_channels, |it| it.get().min(cfg.in_channels));
        let step = |(kind, step): (StepKind, Step)| {
            let scale = options.guidance.scale() as f32;
            RunStep { kind, scalars: [step.t as f32, step.dt() as f32, scale, channels as f32], step }
        };
        Ok(Self {
            batch,
            noise: noise.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?,
            labels: labels.iter().copied().chain(none).collect(),
            steps: kinds.into_iter().zip(options.grid.steps()).map(step).collect(),
        })
    }

    /// Cosine and sine of every rotary angle, (L, K / 2, 2).
    pub(crate) fn rope(&self, programs: &Programs) -> Result<Vec<f32>, GpuError> {
        let (cfg, batch) = (programs.config(), programs.batch());
        let (height, width) = (batch.height / cfg.patch_size, batch.width / cfg.patch_size);
        let table = AxialRope2d::new(cfg.head_dim())?.table(height, width, &Device::Cpu)?;
        Ok(Tensor::stack(&[table.cos(), table.sin()], 2)?.flatten_all()?.to_vec1()?)
    }

    /// How often each half of the network runs.
    pub fn calls(&self) -> NetworkCalls {
        let encoder = self.steps.iter().filter(|it| it.kind.encode().is_some()).count();
        NetworkCalls { encoder, decoder: self.steps.len() }
    }
}

/// Whatever runs the programs of a batch.
pub trait Executor {
    /// Takes noise, labels and the scalars of all steps.
    ///
    /// # Errors
    /// A call that fails.
    fn start(&mut self, run: &Run) -> Result<(), GpuError>;

    /// Runs, or puts on its way, step `index` of the run that was started.
    ///
    /// # Errors
    /// A call that fails.
    fn step(&mut self, index: usize, kind: StepKind) -> Result<(), GpuError>;

    /// The latents after the last step, (B, C, H, W).
    ///
    /// # Errors
    /// A call that fails.
    fn latents(&mut self) -> Result<Vec<f32>, GpuError>;
}

/// Callback of [`execute`] after every launched step; it may stop the run.
pub type OnStep<'a> = dyn FnMut(Step) -> ControlFlow<()> + 'a;

/// Runs all steps and brings the latents back, `(B, C, H, W)` f32 on the CPU.
///
/// # Errors
/// [`FlowError::Cancelled`] when `on_step` stops the run before its last step; [`FlowError::NonFinite`],
/// which is seen at the end, so it names the last step, and the image; a call that fails.
pub fn execute(
    executor: &mut dyn Executor,
    cfg: &DdtConfig,
    run: &Run,
    on_step: &mut OnStep<'_>,
) -> Result<Sampled, GpuError> {
    executor.start(run)?;
    let num_steps = run.steps.len();
    for (index, it) in run.steps.iter().enumerate() {
        executor.step(index, it.kind)?;
        if on_step(it.step).is_break() && index + 1 < num_steps {
            return Err(FlowError::Cancelled { step: index, num_steps }.into());
        }
    }
    let latents = executor.latents()?;
    let Batch { images, height, width, .. } = run.batch;
    if let Some(at) = latents.iter().position(|it| !it.is_finite())
        && let Some(last) = run.steps.last()
    {
        let sample = at / (latents.len() / images);
        return Err(FlowError::NonFinite { step: last.step.index, t: last.step.t, sample }.into());
    }
    let latents = Tensor::from_vec(latents, (images, cfg.in_channels, height, width), &Device::Cpu)?;
    Ok(Sampled { latents, calls: run.calls() })
}
