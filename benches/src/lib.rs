//! Shared parts of the benchmarks: networks by name, and one guided sampling run.
//!
//! Run them with `cargo bench`; results worth quoting stand under `benches/runs/`, with machine and commit.

#![forbid(unsafe_code)]

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use ddt_flow::{EULER, Guidance, TimeGrid, noise_batch};
use ddt_model::{Ddt, DdtConfig, FrozenDdt, ModelError, SampleOptions, sample};
use ddt_sharing::{SharingPlan, Similarity};

/// Sizes of the demo checkpoint, which generates 4 x 4 latents.
pub fn demo_sizes() -> DdtConfig {
    DdtConfig {
        in_channels: 32,
        patch_size: 1,
        hidden_size: 256,
        num_heads: 4,
        num_encoder_blocks: 6,
        num_decoder_blocks: 2,
        num_classes: 10,
    }
}

/// One sampling run to time: Euler, guidance 2 in (0.3, 1), last step 0.04.
#[derive(Debug)]
pub struct SamplingRun {
    network: FrozenDdt,
    noise: Tensor,
    labels: Vec<u32>,
    grid: TimeGrid,
}

impl SamplingRun {
    /// `images` images of `side x side` latents in `num_steps` steps, with random weights.
    ///
    /// # Errors
    /// When sizes, side or steps make no run.
    pub fn new(cfg: &DdtConfig, images: u32, side: usize, num_steps: usize) -> Result<Self, ModelError> {
        let device = Device::Cpu;
        let samples: Vec<u64> = (0..u64::from(images)).collect();
        Ok(Self {
            network: Ddt::random(cfg, 0, DType::F32, &device)?.freeze()?,
            noise: noise_batch(0, &samples, (cfg.in_channels, side, side), &device)?,
            labels: (0..images).map(|it| it % cfg.num_classes as u32).collect(),
            grid: TimeGrid::new(num_steps, Some(0.04), 1.0)?,
        })
    }

    /// Draws the latents.
    ///
    /// # Errors
    /// When the plan is for another number of steps.
    pub fn run(&self, plan: Option<&SharingPlan>) -> Result<Tensor, ModelError> {
        let options = SampleOptions {
            grid: self.grid.clone(),
            solver: &EULER,
            guidance: Guidance::new(2.0, (0.3, 1.0))?,
            plan,
        };
        let go_on = &mut |_: &ddt_flow::StepReport<'_>| ControlFlow::Continue(());
        Ok(sample(&self.network, &self.noise, &self.labels, &options, go_on)?.latents)
    }
}

/// A smooth similarity of `n` steps, falling with distance, faster near noise: the shape that is measured.
///
/// # Errors
/// Never for `n` of 1 to 2048.
pub fn smooth_similarity(n: usize) -> Result<Similarity, ddt_sharing::PlanError> {
    let position = |i: usize| (1.0 + 9.0 * i as f64 / n as f64).ln();
    let value = |i: usize, j: usize| (-2.0 * (position(i) - position(j)).abs()).exp();
    let values = (0..n * n).map(|at| value(at / n, at % n)).collect();
    Similarity::from_matrix(values, n)
}
