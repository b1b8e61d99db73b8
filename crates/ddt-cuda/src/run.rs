//! A run: everything that is known before its first step.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use ddt_flow::{Guidance, Step, TimeGrid};
use ddt_model::{DdtConfig, ModelError, NetworkCalls, check_batch};
use ddt_sharing::{ForecastOrder, SharingPlan, forecast_weights};

use crate::{
    buffer::{Batch, Precision},
    step_kind::{StepKind, step_kinds},
};

/// Options of sampling with Euler's method; [`SampleOptions`](ddt_model::SampleOptions) has any solver.
#[derive(Debug, Clone)]
pub struct EulerOptions<'a> {
    /// The steps.
    pub grid: TimeGrid,
    /// Scale and interval of classifier-free guidance.
    pub guidance: Guidance,
    /// Steps at which to recompute the self-condition; all without a plan.
    pub plan: Option<&'a SharingPlan>,
}

/// A step of a run: its program, and its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunStep {
    /// The kind of its program.
    pub kind: StepKind,
    /// The set of modulations that its program writes, or the last of those that it combines; see
    /// [`Programs::step`](crate::Programs::step).
    pub set: usize,
    /// `t`, `dt`, guidance scale, and the number of guided channels.
    pub scalars: [f32; 4],
    /// The weight of each set of modulations.
    pub weights: [f32; 3],
    /// The step of the grid.
    pub step: Step,
}

/// All that an executor needs to know, before the first step.
#[derive(Debug, Clone)]
pub struct Run {
    /// Size and precision of the batch, and the plan's order.
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
    ) -> Result<Self, ModelError> {
        check_batch(cfg, noise, labels)?;
        let (images, _, height, width) = noise.dims4()?;
        let order = options.plan.map_or(ForecastOrder::Reuse, SharingPlan::order);
        let batch = Batch { images, height, width, precision, order };
        let none = std::iter::repeat_n(cfg.num_classes as u32, labels.len());
        let kinds = step_kinds(&options.grid, &options.guidance, options.plan)?;
        let channels =
            options.guidance.channels().map_or(cfg.in_channels, |it| it.get().min(cfg.in_channels));
        let step = |(kind, step): (StepKind, Step)| {
            let scalars = [step.t, step.dt(), options.guidance.scale(), channels as f64].map(|it| it as f32);
            let (set, weights) =
                options.plan.map_or((0, REUSE), |it| sets(it, options.grid.times(), step.index));
            RunStep { kind, set, scalars, weights, step }
        };
        Ok(Self {
            batch,
            noise: noise.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?,
            labels: labels.iter().copied().chain(none).collect(),
            steps: kinds.into_iter().zip(options.grid.steps()).map(step).collect(),
        })
    }

    /// Cosine and sine of every rotary angle, (L, K / 2, 2).
    #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
    pub(crate) fn rope(&self, cfg: &DdtConfig) -> candle_core::Result<Vec<f32>> {
        let (rows, columns) = cfg.token_grid(self.batch.height, self.batch.width);
        let table = ddt_blocks::AxialRope2d::new(cfg.head_dim())?.table(rows, columns, &Device::Cpu)?;
        Tensor::stack(&[table.cos(), table.sin()], 2)?.flatten_all()?.to_vec1()
    }

    /// Number of runs of each half of the network.
    pub fn calls(&self) -> NetworkCalls {
        let encoder = self.steps.iter().filter(|it| it.kind.encode().is_some()).count();
        NetworkCalls { encoder, decoder: self.steps.len() }
    }
}

/// Weights of a set that is read alone.
const REUSE: [f32; 3] = [1.0, 0.0, 0.0];

/// The set of modulations of a step, and the weights of all sets: those that the CPU gives the runs of the encoder that
/// the sets are from. Runs take turns: run `k` writes set `k mod sets`.
fn sets(plan: &SharingPlan, times: &[f64], step: usize) -> (usize, [f32; 3]) {
    let (sources, ring) = (plan.sources(step), plan.order().points());
    let oldest = plan.recompute_steps().partition_point(|&it| it <= step) - sources.len();
    let source_times: Vec<f64> = sources.iter().map(|&source| times[source]).collect();
    let mut weights = [0.0; 3];
    for (run, weight) in (oldest..).zip(forecast_weights(&source_times, times[step])) {
        weights[run % ring] = weight as f32;
    }
    let set = if plan.is_recompute(step) { oldest % ring } else { sources.len() - 1 };
    (set, weights)
}

/// Callback after every launched step; it may stop the run.
pub type OnStep<'a> = dyn FnMut(Step) -> ControlFlow<()> + 'a;

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        collections::{BTreeSet, HashMap},
    };

    use candle_core::Result;
    use ddt_flow::{CfgBatch, Decoupled, EULER, Guided, solve};
    use ddt_model::{RecomputeSchedule, Shared, SharedState};

    use super::*;
    use crate::{buffer::Span, op::Op, program::Programs};

    /// A step as the CPU's sampler asks its network for it.
    #[derive(Debug, PartialEq)]
    struct Asked {
        encoded: Option<CfgBatch>,
        decoded: CfgBatch,
        /// Each run of the encoder that is combined, with its weight; in order.
        combined: Vec<(usize, f32)>,
    }

    #[derive(Default)]
    struct Recorder {
        runs: RefCell<usize>,
        encoded: RefCell<Option<CfgBatch>>,
        steps: RefCell<Vec<Asked>>,
    }

    impl Decoupled for &Recorder {
        /// Which run of the encoder.
        type Cached = usize;

        fn encode(&self, _: &Tensor, _: f64, rows: CfgBatch) -> Result<usize> {
            assert_eq!(self.encoded.replace(Some(rows)), None);
            Ok(self.runs.replace_with(|it| *it + 1))
        }

        fn decode(&self, x_t: &Tensor, cached: &[(&usize, f64)], rows: CfgBatch) -> Result<Tensor> {
            let combined = cached.iter().map(|&(&run, weight)| (run, weight as f32)).collect();
            let asked = Asked { encoded: self.encoded.take(), decoded: rows, combined };
            self.steps.borrow_mut().push(asked);
            match rows {
                CfgBatch::Cond => Ok(x_t.clone()),
                CfgBatch::CondUncond => Tensor::cat(&[x_t, x_t], 0),
            }
        }
    }

    /// Elements of the decoder's modulations, all sets of them.
    type Elements = BTreeSet<usize>;

    /// Elements that a program writes, elements that it reads, and whether it weights those it reads.
    fn touched(programs: &Programs, ops: &[Op]) -> (Elements, Elements, bool) {
        let buffer = programs.operands.ids.decoder_modulations.buffer;
        let elements = |spans: Vec<Span>| -> Elements {
            spans.into_iter().filter(|it| it.buffer == buffer).flat_map(Span::range).collect()
        };
        let forecast = |op: &Op| matches!(op, Op::GateNorm { forecast: Some(_), .. });
        (
            ops.iter().flat_map(|op| elements(op.writes())).collect(),
            ops.iter().flat_map(|op| elements(op.reads())).collect(),
            ops.iter().any(forecast),
        )
    }

    /// Replays the programs of a run on memory whose elements say which run of the encoder wrote them.
    fn replay(run: &Run, programs: &Programs) -> Vec<Asked> {
        let sets = &programs.operands.ids.decoder_modulations;
        let rows = |elements: usize| match elements {
            it if it == sets.set_len => CfgBatch::CondUncond,
            it if 2 * it == sets.set_len => CfgBatch::Cond,
            it => panic!("{it} of {} elements", sets.set_len),
        };
        let mut memory = vec![None; programs.buffers()[sets.buffer.index()].len];
        let (mut runs, mut known) = (0, HashMap::new());
        let replay = |step: &RunStep| {
            let touched = || touched(programs, programs.step(step.kind, step.set));
            let (written, read, forecast) = &*known.entry((step.kind, step.set)).or_insert_with(touched);
            let encoded = (!written.is_empty()).then(|| rows(written.len()));
            assert_eq!(encoded, step.kind.encode());
            written.iter().for_each(|&it| memory[it] = Some(runs));
            runs += usize::from(encoded.is_some());
            // All modulations of the decoded rows, at the same places in each set that is combined.
            let mut combined: Vec<(usize, f32)> = Vec::new();
            for set in 0..memory.len() / sets.set_len {
                let of_set = read.range(sets.start(set, 0)..sets.start(set + 1, 0));
                let writers: BTreeSet<usize> = of_set.clone().map(|&it| memory[it].unwrap()).collect();
                if let Some(&writer) = writers.first() {
                    assert_eq!(writers.len(), 1, "one run's");
                    assert_eq!(rows(of_set.count()), step.kind.decode());
                    combined.push((writer, if *forecast { step.weights[set] } else { 1.0 }));
                }
            }
            combined.sort_by_key(|it| it.0);
            assert_eq!(*forecast, combined.len() > 1);
            Asked { encoded, decoded: step.kind.decode(), combined }
        };
        run.steps.iter().map(replay).collect()
    }

    #[test]
    fn steps_are_those_of_the_sampler_on_the_cpu() {
        let cfg = DdtConfig {
            in_channels: 1,
            patch_size: 1,
            hidden_size: 4,
            num_heads: 1,
            num_encoder_blocks: 1,
            num_decoder_blocks: 2,
            num_classes: 1,
        };
        let noise = Tensor::ones((1, 1, 1, 1), DType::F32, &Device::Cpu).unwrap();
        let mut kinds_seen = [[false; 5]; 3];
        for (steps, shift) in [(1, 1.0), (7, 1.0), (24, 1.7), (250, 1.0)] {
            let grid = TimeGrid::new(steps, (steps > 1).then_some(0.04), shift).unwrap();
            let uniform = [1, 3, 5, 9].map(|every| SharingPlan::uniform(steps, every).unwrap());
            let uneven = [0, 1, 2, 6].into_iter().filter(|&it| it < steps).collect();
            let plans = uniform.into_iter().chain([SharingPlan::new(uneven, steps).unwrap()]);
            let orders = [ForecastOrder::Reuse, ForecastOrder::Linear, ForecastOrder::Quadratic];
            let plans = plans.flat_map(|plan| orders.map(|order| Some(plan.clone().with_order(order))));
            for plan in plans.chain([None]) {
                for (scale, interval) in
                    [(2.0, (0.3, 1.0)), (1.0, (0.0, 1.0)), (3.0, (0.1, 0.6)), (2.0, (-1.0, 2.0))]
                {
                    let guidance = Guidance::new(scale, interval).unwrap();
                    let recorder = Recorder::default();
                    let schedule =
                        plan.as_ref().map(|it| RecomputeSchedule::new(it, &grid, &guidance).unwrap());
                    let model = Guided { model: Shared::new(&recorder, schedule), guidance };
                    let mut state = SharedState::default();
                    solve(&model, &EULER, &grid, &noise, &mut state, &mut |_| ControlFlow::Continue(()))
                        .unwrap();

                    let options = EulerOptions { grid: grid.clone(), guidance, plan: plan.as_ref() };
                    let run = Run::new(&cfg, Precision::F32, &noise, &[0], &options).unwrap();
                    let programs = Programs::new(&cfg, run.batch).unwrap();
                    assert_eq!(replay(&run, &programs), recorder.steps.into_inner(), "{plan:?}");
                    for it in &run.steps {
                        kinds_seen[it.set][it.kind.index()] = true;
                    }
                }
            }
        }
        assert_eq!(kinds_seen, [[true; 5]; 3]);
    }

    #[test]
    fn what_does_not_fit_is_refused_as_on_the_cpu() {
        let cfg = DdtConfig { in_channels: 3, num_classes: 5, ..DdtConfig::b_2() };
        let grid = TimeGrid::new(2, None, 1.0).unwrap();
        let options = EulerOptions { grid, guidance: Guidance::none(), plan: None };
        let message = |dims: [usize; 4], labels: &[u32]| {
            let noise = Tensor::zeros(&dims, DType::F32, &Device::Cpu).unwrap();
            Run::new(&cfg, Precision::F32, &noise, labels, &options).unwrap_err().to_string()
        };
        assert!(message([1, 3, 4, 6], &[6]).contains("label 6"));
        assert!(message([1, 3, 4, 6], &[1, 2]).contains("expected (2, 3, H, W)"));
        assert!(message([1, 3, 5, 6], &[1]).contains("multiples of 2"));
    }
}
