//! Stochastic sampling: the Euler-Maruyama method, with a last step that adds no noise.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::base::{History, Solver, Velocity};
use crate::noise::{CounterNoise, Purpose};
use crate::path::LinearPath;
use crate::time_grid::Step;

/// Euler-Maruyama method for the stochastic differential equation with the flow's marginals. Weak order 1, one
/// evaluation per step.
///
/// ```text
/// x <- x + (v + w s / 2) dt + sqrt(w dt) n,    n ~ N(0, I)
/// w  = scale sigma_t,   s = (t v - x) / (1 - t)          the score of the linear path
/// ```
///
/// The last step adds no noise; see [`LastStep`]. With guidance, `v` is the guided velocity and `s` follows
/// from it.
///
/// The noise of a sample depends only on its initial latents and the step ([`History::sample_keys`]): two
/// samples with the same start give the same image, whatever their batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EulerMaruyama {
    scale: f64,
    last: LastStep,
    name: &'static str,
}

/// Update of the last step, which adds no noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastStep {
    /// `x + v dt`, as in the flow.
    Flow,
    /// `x + (v + w s / 2) dt`, the mean of the stochastic step.
    Mean,
}

impl EulerMaruyama {
    /// DDT's published setting: `w = sigma_t`, last step [`Flow`](LastStep::Flow).
    pub const fn ddt() -> Self {
        Self { scale: 1.0, last: LastStep::Flow, name: "euler-maruyama" }
    }

    /// REPA's published setting: `w = 2 sigma_t`, last step [`Mean`](LastStep::Mean), SiT's "Mean".
    pub const fn repa() -> Self {
        Self { scale: 2.0, last: LastStep::Mean, name: "euler-maruyama-repa" }
    }

    /// `w / sigma_t` (unitless).
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Update of the last step.
    pub fn last_step(&self) -> LastStep {
        self.last
    }

    /// Update for a given velocity and noise; the last step ignores the noise.
    ///
    /// # Shapes
    /// `x`, `velocity`, `noise`: (B, ...) of one float type -> (B, ...)
    ///
    /// # Errors
    /// Shapes or types differ, or `step` starts at `t = 1`, where there is no score.
    pub fn advance(&self, x: &Tensor, velocity: &Tensor, noise: &Tensor, step: Step) -> Result<Tensor> {
        let w = self.scale * LinearPath.sigma_t(step.t);
        if step.is_last() && self.last == LastStep::Flow {
            return x + (velocity * step.dt())?;
        }
        let score = LinearPath.score(velocity, x, step.t)?;
        let mean = (x + ((velocity + (score * (w / 2.0))?)? * step.dt())?)?;
        if step.is_last() { Ok(mean) } else { mean + (noise * (w * step.dt()).sqrt())? }
    }
}

impl Solver for EulerMaruyama {
    fn name(&self) -> &str {
        self.name
    }

    fn order(&self) -> usize {
        1
    }

    fn step(&self, velocity: Velocity<'_>, x: &Tensor, step: Step, history: &mut History) -> Result<Tensor> {
        let noise = normal_like(x, history.sample_keys(x)?, step.index)?;
        self.advance(x, &velocity(x, step.start())?, &noise, step)
    }
}

/// Standard normal noise of the shape and type of `x`, each sample from its own key.
fn normal_like(x: &Tensor, keys: &[u64], step: usize) -> Result<Tensor> {
    let per_sample = x.elem_count().checked_div(keys.len()).unwrap_or(0);
    let mut values = vec![0f32; per_sample * keys.len()];
    values.par_chunks_mut(per_sample.max(1)).zip(keys).for_each(|(row, key)| {
        CounterNoise::new(*key, Purpose::Solver, step as u64, 0).fill_normal(row);
    });
    Tensor::from_vec(values, x.shape(), x.device())?.to_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::model::Evaluation;
    use crate::noise::noise_batch;
    use crate::time_grid::TimeGrid;

    fn run(solver: EulerMaruyama, start: &Tensor) -> Tensor {
        let mut history = History::default();
        let grid = TimeGrid::new(32, None, 1.0).unwrap();
        grid.steps().fold(start.clone(), |x, step| {
            // The flow between N(0, 1) and itself: marginals N(0, t^2 + (1 - t)^2).
            let flow = &mut |x: &Tensor, at: Evaluation| {
                x * ((2.0 * at.t - 1.0) / (at.t.powi(2) + (1.0 - at.t).powi(2)))
            };
            solver.step(flow, &x, step, &mut history).unwrap()
        })
    }

    #[test]
    fn a_sample_does_not_depend_on_its_batch() {
        let start = noise_batch(1, &[0, 1, 2], (2, 3, 3), &Device::Cpu).unwrap();
        for solver in [EulerMaruyama::ddt(), EulerMaruyama::repa()] {
            let whole = run(solver, &start);
            let second = run(solver, &start.narrow(0, 1, 1).unwrap());
            let difference = (whole.narrow(0, 1, 1).unwrap() - second).unwrap();
            assert_eq!(difference.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        }
    }

    /// Noise is white and is added: the variance at data is 1 but for the error of few steps.
    #[test]
    fn marginals_are_kept() {
        let samples: Vec<u64> = (0..400).collect();
        let start = noise_batch(1, &samples, (1, 8, 8), &Device::Cpu).unwrap();
        for solver in [EulerMaruyama::ddt(), EulerMaruyama::repa()] {
            let end = run(solver, &start).to_dtype(DType::F64).unwrap();
            let mean = end.mean_all().unwrap().to_scalar::<f64>().unwrap();
            let square = end.sqr().unwrap().mean_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(mean.abs() < 0.03 && (square - 1.0).abs() < 0.08, "{} {mean} {square}", solver.name());
            // It is not the flow's deterministic image of the start.
            let start = start.to_dtype(DType::F64).unwrap();
            let both = (end * start).unwrap().mean_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(both < 0.8, "{} {both}", solver.name());
        }
    }
}
