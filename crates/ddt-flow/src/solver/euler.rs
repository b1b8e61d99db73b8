//! Euler's method.

use candle_core::{Result, Tensor};

use super::{History, Solver};
use crate::model::Evaluation;
use crate::time_grid::Step;

/// Euler's method: the velocity at the start of a step holds until its end. Order 1.
///
/// ```text
/// x <- x + v(x, t) (t_next - t)
/// ```
///
/// The tables of arXiv:2504.05741 use 250 such steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Euler;

impl Solver for Euler {
    fn name(&self) -> &str {
        "euler"
    }

    fn order(&self) -> usize {
        1
    }

    fn step(
        &self,
        velocity: &mut dyn FnMut(&Tensor, Evaluation) -> Result<Tensor>,
        x: &Tensor,
        step: Step,
        _history: &mut History,
    ) -> Result<Tensor> {
        x + (velocity(x, step.start())? * step.dt())?
    }
}
