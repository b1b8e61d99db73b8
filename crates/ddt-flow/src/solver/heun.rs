//! Heun's method.

use candle_core::{Result, Tensor};

use super::{History, Solver};
use crate::model::Evaluation;
use crate::time_grid::Step;

/// Heun's method, the trapezoid rule with an Euler step as its guess. Order 2, two evaluations a step.
///
/// ```text
/// a  = v(x, t),  b = v(x + a dt, t_next)
/// x <- x + (a + b) dt / 2
/// ```
///
/// The last step evaluates at `t = 1`, as SiT's published sampler does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heun;

impl Solver for Heun {
    fn name(&self) -> &str {
        "heun"
    }

    fn order(&self) -> usize {
        2
    }

    fn step(
        &self,
        velocity: &mut dyn FnMut(&Tensor, Evaluation) -> Result<Tensor>,
        x: &Tensor,
        step: Step,
        _history: &mut History,
    ) -> Result<Tensor> {
        let first = velocity(x, step.start())?;
        let guess = (x + (&first * step.dt())?)?;
        let second = velocity(&guess, step.at(step.t_next))?;
        x + ((first + second)? * (step.dt() / 2.0))?
    }
}
