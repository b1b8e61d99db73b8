//! One run: all that is known before its first step.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use ddt_flow::{Guidance, Step, TimeGrid};
use ddt_model::{DdtConfig, ModelError, NetworkCalls, check_batch};
use ddt_sharing::SharingPlan;

use crate::{
    buffer::{Batch, Precision},
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
    ) -> Result<Self, ModelError> {
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
    #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
    pub(crate) fn rope(&self, cfg: &DdtConfig) -> candle_core::Result<Vec<f32>> {
        let (rows, columns) = cfg.token_grid(self.batch.height, self.batch.width);
        let table = ddt_blocks::AxialRope2d::new(cfg.head_dim())?.table(rows, columns, &Device::Cpu)?;
        Tensor::stack(&[table.cos(), table.sin()], 2)?.flatten_all()?.to_vec1()
    }

    /// How often each half of the network runs.
    pub fn calls(&self) -> NetworkCalls {
        let encoder = self.steps.iter().filter(|it| it.kind.encode().is_some()).count();
        NetworkCalls { encoder, decoder: self.steps.len() }
    }
}

/// Callback after every launched step; it may stop the run.
pub type OnStep<'a> = dyn FnMut(Step) -> ControlFlow<()> + 'a;

#[cfg(test)]
mod tests {
    use super::*;

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
