//! Solvers: how the velocities of one step become the next latents.

mod adams_bashforth;
mod euler;
mod history;

use std::fmt::Debug;

use candle_core::Tensor;

pub use adams_bashforth::AdamsBashforth;
pub use euler::Euler;
pub use history::History;

use crate::error::{FlowError, Result};
use crate::model::Evaluation;
use crate::time_grid::Step;

/// One way of stepping `dx/dt = v(x, t)`.
///
/// A solver has no state of its own: what it needs of earlier steps is in the [`History`] that the
/// caller passes along, so one solver serves any number of runs.
pub trait Solver: Debug + Send + Sync {
    /// The name [`solver_by_name`] knows it by.
    fn name(&self) -> &str;

    /// The order of its error: halving all steps divides the error by `2^order`, once under way.
    fn order(&self) -> usize;

    /// Steps from `x` at `step.t` to the latents at `step.t_next`.
    ///
    /// `velocity` may be called any number of times, with `at.step` the index of this step; what it
    /// returns has the shape of its input.
    ///
    /// # Shapes
    ///
    /// `x`: (B, ...) -> (B, ...) in the same float type
    ///
    /// # Errors
    ///
    /// `velocity` fails, or `history` is not of times before `step.t`.
    fn step(
        &self,
        velocity: &mut dyn FnMut(&Tensor, Evaluation) -> candle_core::Result<Tensor>,
        x: &Tensor,
        step: Step,
        history: &mut History,
    ) -> candle_core::Result<Tensor>;
}

/// The names of all solvers. `adams` is short for `adams2`.
pub const SOLVER_NAMES: &[&str] = &["euler", "adams", "adams1", "adams2", "adams3", "adams4"];

/// Finds a solver by its name, one of [`SOLVER_NAMES`].
///
/// # Errors
///
/// [`FlowError::UnknownSolver`], which lists the names there are.
pub fn solver_by_name(name: &str) -> Result<Box<dyn Solver>> {
    let order = match name {
        "euler" => return Ok(Box::new(Euler)),
        "adams1" => 1,
        "adams" | "adams2" => 2,
        "adams3" => 3,
        "adams4" => 4,
        _ => return Err(FlowError::UnknownSolver { got: name.to_owned() }),
    };
    Ok(Box::new(AdamsBashforth::new(order)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_solver() {
        for &name in SOLVER_NAMES {
            let expected = if name == "adams" { "adams2" } else { name };
            assert_eq!(solver_by_name(name).unwrap().name(), expected);
        }
        assert_eq!(solver_by_name("adams3").unwrap().order(), 3);
    }

    #[test]
    fn unknown_names_are_errors_that_list_the_known() {
        for name in ["", "Euler", "adams5", "heun"] {
            let err = solver_by_name(name).unwrap_err();
            assert!(matches!(&err, FlowError::UnknownSolver { got } if got == name));
            assert!(SOLVER_NAMES.iter().all(|known| err.to_string().contains(known)));
        }
    }
}
