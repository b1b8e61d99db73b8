//! Runs the programs of one batch on a device.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use ddt_flow::FlowError;
use ddt_kernels::cuda::{Cuda, CudaError, Graph, Slice, Steps};
use ddt_model::{ModelError, Sampled};
use half::bf16;

use super::{
    launch::{Attend, Launcher},
    weights::DeviceWeights,
};
use crate::{
    arena::ArenaPlan,
    buffer::{Batch, Precision},
    error::GpuError,
    program::Programs,
    run::{OnStep, Run, RunStep},
    step_kind::StepKind,
};

/// The programs of one batch on a device: an arena, and a graph for each program that ran.
///
/// Graphs hold addresses of the arena and of the weights; they are dropped before both.
#[derive(Debug)]
pub struct CudaExecutor {
    /// Graphs by kind of step and set of modulations, as [`Programs::step`].
    graphs: HashMap<(StepKind, usize), Graph>,
    steps: Steps,
    arena: Slice<u8>,
    weights: DeviceWeights,
    programs: Programs,
    plan: ArenaPlan,
    cuda: Cuda,
    /// Steps put on the stream since it was last empty.
    ahead: usize,
}

/// Steps that may be on the stream at once: enough that the GPU never waits for the host, few enough that
/// progress is true and a run stops soon.
const AHEAD: usize = 8;

/// Steps of a run that the table has room for.
const MAX_STEPS: usize = 4096;

impl CudaExecutor {
    /// Takes memory for the programs' buffers. Nothing is taken after this.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`], which names a batch that fits; [`GpuError::Unsupported`] for sizes the
    /// kernels have no variant for.
    pub fn new(cuda: &Cuda, programs: Programs, weights: &DeviceWeights) -> Result<Self, GpuError> {
        check(&programs)?;
        let plan = ArenaPlan::new(&programs);
        let arena = cuda.alloc::<u8>(plan.bytes()).map_err(|error| match error {
            CudaError::OutOfMemory { asked, free, .. } => {
                let (batch, images) = (programs.batch(), programs.batch().images);
                // Free memory may be fragmented; nine tenths of it are likely to be available.
                let fit = ArenaPlan::images_that_fit(programs.config(), batch, free - free / 10);
                let fit = fit.unwrap_or(0).min(images.saturating_sub(1));
                let message = format!(
                    "{images} images need {asked} bytes of GPU memory where {free} are free; {fit} images at once \
                     would fit"
                );
                GpuError::OutOfMemory { message, fit }
            }
            other => other.into(),
        })?;
        Ok(Self {
            graphs: HashMap::new(),
            steps: cuda.steps(MAX_STEPS)?,
            arena,
            weights: weights.clone(),
            programs,
            plan,
            cuda: cuda.clone(),
            ahead: 0,
        })
    }

    /// The programs it runs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The positions of its buffers.
    pub fn plan(&self) -> &ArenaPlan {
        &self.plan
    }

    /// Captures a program, unless that was done: tunes its GEMMs, and runs it once, because the driver must not load
    /// anything while capturing. Overwrites every buffer.
    fn capture(&mut self, kind: StepKind, set: usize) -> Result<(), GpuError> {
        let sets = self.programs.batch().order.points();
        if set >= sets {
            return Err(GpuError::Unsupported(format!(
                "expected a set of modulations below {sets}, got {set}"
            )));
        }
        if !self.graphs.contains_key(&(kind, set)) {
            let graph = match self.programs.batch().precision {
                Precision::Bf16 => self.captured::<bf16>(kind, set)?,
                Precision::F32 => self.captured::<f32>(kind, set)?,
            };
            self.graphs.insert((kind, set), graph);
        }
        Ok(())
    }

    fn captured<T: Attend>(&self, kind: StepKind, set: usize) -> Result<Graph, CudaError> {
        let (launcher, ops) = (self.launcher(), self.programs.step(kind, set));
        launcher.tune::<T>(ops)?;
        launcher.run::<T>(ops)?;
        self.cuda.wait()?;
        self.cuda.capture(|| launcher.run::<T>(ops))
    }

    fn launcher(&self) -> Launcher<'_> {
        Launcher {
            cuda: &self.cuda,
            programs: &self.programs,
            plan: &self.plan,
            arena: &self.arena,
            weights: &self.weights,
            steps: &self.steps,
        }
    }

    /// Runs all steps and brings the latents back, `(B, C, H, W)` f32 on the CPU.
    ///
    /// # Errors
    /// [`FlowError::Cancelled`] when `on_step` stops the run before its last step; [`FlowError::NonFinite`], which
    /// is seen at the end, so it names the last step, and the image; a run of another batch or of too many steps;
    /// a call that fails.
    pub fn run(&mut self, run: &Run, on_step: &mut OnStep<'_>) -> Result<Sampled, GpuError> {
        self.start(run)?;
        let num_steps = run.steps.len();
        for (index, it) in run.steps.iter().enumerate() {
            self.step(it)?;
            if on_step(it.step).is_break() && index + 1 < num_steps {
                return Err(ModelError::from(FlowError::Cancelled { step: index, num_steps }).into());
            }
        }
        let latents = self.programs.operands.whole(self.programs.operands.ids.latents);
        let latents = self.cuda.read(&self.launcher().slice::<f32>(latents)?)?;
        let Batch { images, height, width, .. } = run.batch;
        if let Some(at) = latents.iter().position(|it| !it.is_finite())
            && let Some(last) = run.steps.last()
        {
            let sample = at / (latents.len() / images);
            let error = FlowError::NonFinite { step: last.step.index, t: last.step.t, sample };
            return Err(ModelError::from(error).into());
        }
        let shape = (images, self.programs.config().in_channels, height, width);
        Ok(Sampled { latents: Tensor::from_vec(latents, shape, &Device::Cpu)?, calls: run.calls() })
    }

    /// Uploads noise, labels and the scalars of all steps.
    fn start(&mut self, run: &Run) -> Result<(), GpuError> {
        if run.batch != self.programs.batch() || run.steps.len() > MAX_STEPS {
            return Err(GpuError::Unsupported(format!(
                "expected a run of {:?} and at most {MAX_STEPS} steps, got {:?} and {} steps",
                self.programs.batch(),
                run.batch,
                run.steps.len()
            )));
        }
        for step in &run.steps {
            self.capture(step.kind, step.set)?;
        }
        let (launcher, operands) = (self.launcher(), &self.programs.operands);
        let whole = |id| operands.whole(id);
        self.cuda.write(&launcher.slice(whole(operands.ids.latents))?, &run.noise)?;
        self.cuda.write(&launcher.slice(whole(operands.ids.labels))?, &run.labels)?;
        self.cuda.write(&launcher.slice(whole(operands.ids.rope))?, &run.rope(&operands.cfg)?)?;
        let numbers = |it: &RunStep| {
            let ([t, dt, scale, channels], [a, b, c]) = (it.scalars, it.weights);
            [t, dt, scale, channels, a, b, c]
        };
        let scalars: Vec<_> = run.steps.iter().map(numbers).collect();
        self.cuda.write_steps(&self.steps, &scalars)?;
        self.ahead = 0;
        Ok(())
    }

    /// Launches a step. Its scalars are those that the graph of the step before advanced to.
    fn step(&mut self, step: &RunStep) -> Result<(), GpuError> {
        if let Some(graph) = self.graphs.get(&(step.kind, step.set)) {
            graph.launch()?;
        }
        self.ahead += 1;
        if self.ahead == AHEAD {
            self.ahead = 0;
            self.cuda.wait()?;
        }
        Ok(())
    }

    /// Milliseconds of one step with the program of this kind and set, the least of `runs`; leaves no run to continue.
    ///
    /// # Errors
    /// A set that the batch's order does not have; a call that fails.
    pub fn time_step(&mut self, kind: StepKind, set: usize, runs: usize) -> Result<f64, GpuError> {
        self.capture(kind, set)?;
        let mut best = f64::INFINITY;
        if let Some(graph) = self.graphs.get(&(kind, set)) {
            for _ in 0..runs.max(1) {
                best = best.min(self.cuda.time(|| graph.launch())?);
            }
        }
        Ok(best)
    }
}

/// Refuses sizes that the kernels do not support, before any work.
fn check(programs: &Programs) -> Result<(), GpuError> {
    let (d, head) = (programs.config().hidden_size, programs.config().head_dim());
    let unsupported = |what: &str| Err(GpuError::Unsupported(format!("{what}; sample on the CPU")));
    if !d.is_multiple_of(8) || d > 2048 {
        return unsupported(&format!("hidden_size is {d}, the GPU's kernels take multiples of 8 up to 2048"));
    }
    if head > 128 {
        return unsupported(&format!("the head size is {head}, the GPU's kernels take up to 128"));
    }
    Ok(())
}
