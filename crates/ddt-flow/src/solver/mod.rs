//! Solvers: how the velocities of one step become the next latents.

mod adams_bashforth;
mod dopri5;
mod dpm;
mod euler;
mod euler_maruyama;
mod heun;
mod history;

use std::fmt::Debug;

use candle_core::Tensor;

pub use adams_bashforth::AdamsBashforth;
pub use dopri5::Dopri5;
pub use dpm::Dpm2;
pub use euler::Euler;
pub use euler_maruyama::{EulerMaruyama, LastStep};
pub use heun::Heun;
pub use history::History;

use crate::error::{FlowError, Result};
use crate::model::Evaluation;
use crate::time_grid::Step;

/// One way of stepping `dx/dt = v(x, t)`.
///
/// A solver has no state of its own: what it needs of earlier steps is in the [`History`] that the
/// caller passes along, so one solver serves any number of runs.
///
/// It may evaluate the velocity any number of times, anywhere between the ends of the step at hand. Each
/// such evaluation belongs to that step ([`Step::at`]): it is guided if the step's start is, and where
/// self-conditions are shared it computes a new one if the step is a recompute step.
pub trait Solver: Debug + Send + Sync {
    /// The name [`solver_by_name`] knows it by.
    fn name(&self) -> &str;

    /// The order of its error: halving all steps divides the error by `2^order`, once under way. Of a
    /// stochastic solver, that of its marginals; of an adaptive pair, of the sub-steps it chooses.
    fn order(&self) -> usize;

    /// Steps from `x` at `step.t` to the latents at `step.t_next`.
    ///
    /// `velocity` may be called any number of times, each at a [`Step::at`] of this step; what it returns
    /// has the shape of its input.
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

/// The names of all solvers. `adams` is short for `adams2`; `dopri5` may be followed by its tolerance,
/// `dopri5:1e-6`.
pub const SOLVER_NAMES: &[&str] = &[
    "euler",
    "heun",
    "adams",
    "adams1",
    "adams2",
    "adams3",
    "adams4",
    "dpm2",
    "euler-maruyama",
    "euler-maruyama-repa",
    "dopri5",
];

/// Finds a solver by its name, one of [`SOLVER_NAMES`].
///
/// # Errors
///
/// [`FlowError::UnknownSolver`], which lists the names there are; [`FlowError::Tolerance`].
pub fn solver_by_name(name: &str) -> Result<Box<dyn Solver>> {
    let unknown = || FlowError::UnknownSolver { got: name.to_owned() };
    let order = match name {
        "euler" => return Ok(Box::new(Euler)),
        "heun" => return Ok(Box::new(Heun)),
        "dpm2" => return Ok(Box::new(Dpm2)),
        "euler-maruyama" => return Ok(Box::new(EulerMaruyama::ddt())),
        "euler-maruyama-repa" => return Ok(Box::new(EulerMaruyama::repa())),
        "dopri5" => return Ok(Box::new(Dopri5::new(Dopri5::DEFAULT_TOLERANCE)?)),
        "adams1" => 1,
        "adams" | "adams2" => 2,
        "adams3" => 3,
        "adams4" => 4,
        _ => {
            let tolerance =
                name.strip_prefix("dopri5:").and_then(|it| it.parse().ok()).ok_or_else(unknown)?;
            return Ok(Box::new(Dopri5::new(tolerance)?));
        }
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
        assert!(matches!(solver_by_name("dopri5:2"), Err(FlowError::Tolerance { .. })));
        assert_eq!(solver_by_name("dopri5:1e-6").unwrap().name(), "dopri5:1e-6");
        for name in ["", "Euler", "adams5", "heun3", "dopri5:", "dopri5:x"] {
            let err = solver_by_name(name).unwrap_err();
            assert!(matches!(&err, FlowError::UnknownSolver { got } if got == name));
            assert!(SOLVER_NAMES.iter().all(|known| err.to_string().contains(known)));
        }
    }
}
