//! Runs the programs of one batch on a device.

use ddt_kernels::cuda::{Cuda, CudaError, Graph, Slice, Steps};
use half::bf16;

use super::{launch::Launcher, weights::DeviceWeights};
use crate::{
    arena::ArenaPlan,
    error::GpuError,
    program::{Precision, Programs},
    run::{Executor, Run},
    step_kind::StepKind,
};

/// The programs of one batch on a device: an arena, and a graph for each kind of step that ran.
///
/// Graphs hold addresses of the arena and of the weights; they are dropped before both.
#[derive(Debug)]
pub struct CudaExecutor {
    graphs: [Option<Graph>; 5],
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
                let batch = programs.batch();
                // Free memory may be fragmented; nine tenths of it are likely to be available.
                let fit = ArenaPlan::images_that_fit(programs.config(), batch, free - free / 10);
                GpuError::OutOfMemory {
                    images: batch.images,
                    needed: asked,
                    free,
                    fit: fit.unwrap_or(0).min(batch.images.saturating_sub(1)),
                }
            }
            other => other.into(),
        })?;
        let (graphs, steps) = (Default::default(), cuda.steps(MAX_STEPS)?);
        Ok(Self {
            graphs,
            steps,
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

    /// Where its buffers lie.
    pub fn plan(&self) -> &ArenaPlan {
        &self.plan
    }

    /// Captures a kind of step, unless that was done: tunes its GEMMs, and runs it once, because the
    /// driver must not load anything while capturing. Overwrites every buffer.
    fn capture(&mut self, kind: StepKind) -> Result<(), GpuError> {
        if self.graphs[kind.index()].is_some() {
            return Ok(());
        }
        let (launcher, ops) = (self.launcher(), self.programs.step(kind));
        let graph = match self.programs.batch().precision {
            Precision::Bf16 => {
                launcher.tune::<bf16>(ops)?;
                launcher.run::<bf16>(ops)?;
                self.cuda.wait()?;
                self.cuda.capture(|| launcher.run::<bf16>(ops))?
            }
            Precision::F32 => {
                launcher.tune::<f32>(ops)?;
                launcher.run::<f32>(ops)?;
                self.cuda.wait()?;
                self.cuda.capture(|| launcher.run::<f32>(ops))?
            }
        };
        self.graphs[kind.index()] = Some(graph);
        Ok(())
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

    /// Milliseconds of one step of this kind, the least of `runs`; leaves no run to continue.
    ///
    /// # Errors
    /// A call that fails.
    pub fn time_step(&mut self, kind: StepKind, runs: usize) -> Result<f64, GpuError> {
        self.capture(kind)?;
        let mut best = f64::INFINITY;
        if let Some(graph) = &self.graphs[kind.index()] {
            for _ in 0..runs.max(1) {
                best = best.min(self.cuda.time(|| graph.launch())?);
            }
        }
        Ok(best)
    }
}

/// Refuses sizes that the kernels do not support, before any work.
fn check(programs: &Programs) -> Result<(), GpuError> {
    let cfg = programs.config();
    let (d, head) = (cfg.hidden_size, cfg.head_dim());
    if !d.is_multiple_of(8) || d > 2048 {
        let (what, expected) = ("hidden_size", "multiples of 8 up to 2048");
        return Err(GpuError::Unsupported { what, expected, got: d.to_string() });
    }
    if head > 128 {
        let (what, expected) = ("the head size", "up to 128");
        return Err(GpuError::Unsupported { what, expected, got: head.to_string() });
    }
    Ok(())
}

impl Executor for CudaExecutor {
    fn start(&mut self, run: &Run) -> Result<(), GpuError> {
        if run.batch != self.programs.batch() || run.steps.len() > MAX_STEPS {
            let got = format!("{:?}, {} steps", run.batch, run.steps.len());
            return Err(GpuError::Unsupported {
                what: "the run",
                expected: "the batch they were placed for and up to 4096 steps",
                got,
            });
        }
        for step in &run.steps {
            self.capture(step.kind)?;
        }
        let ids = &self.programs.ids;
        let launcher = self.launcher();
        let whole = |id| self.programs.whole(id);
        self.cuda.write(&launcher.slice(whole(ids.latents))?, &run.noise)?;
        self.cuda.write(&launcher.slice(whole(ids.labels))?, &run.labels)?;
        self.cuda.write(&launcher.slice(whole(ids.rope))?, &run.rope(&self.programs)?)?;
        let scalars: Vec<[f32; 4]> = run.steps.iter().map(|it| it.scalars).collect();
        self.cuda.write_steps(&self.steps, &scalars)?;
        self.ahead = 0;
        Ok(())
    }

    /// The scalars of the step are those the graph of the step before moved on to.
    fn step(&mut self, _: usize, kind: StepKind) -> Result<(), GpuError> {
        match &self.graphs[kind.index()] {
            Some(graph) => graph.launch()?,
            None => {
                let (what, expected) = ("the step", "kinds that the run was started with");
                return Err(GpuError::Unsupported { what, expected, got: kind.name().to_owned() });
            }
        }
        self.ahead += 1;
        if self.ahead == AHEAD {
            self.ahead = 0;
            self.cuda.wait()?;
        }
        Ok(())
    }

    fn latents(&mut self) -> Result<Vec<f32>, GpuError> {
        let latents = self.programs.whole(self.programs.ids.latents);
        Ok(self.cuda.read(&self.launcher().slice::<f32>(latents)?)?)
    }
}
