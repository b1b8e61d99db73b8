//! Solvers, and finding them by name.

mod base;
mod euler_maruyama;
mod multistep;
mod runge_kutta;

pub use base::{History, Solver, Velocity};
pub use euler_maruyama::{EulerMaruyama, LastStep};
pub use multistep::{AdamsBashforth, Dpm2};
pub use runge_kutta::{Dopri5, EULER, HEUN, RungeKutta};

use crate::error::{FlowError, Result};

/// Names of all solvers. `adams` is short for `adams2`; `dopri5` may be followed by its tolerance, as in
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

/// Solver with one of the [`SOLVER_NAMES`].
///
/// # Errors
/// [`FlowError::Invalid`] for an unknown name, listing the known ones, or for a tolerance out of range.
pub fn solver_by_name(name: &str) -> Result<Box<dyn Solver>> {
    Ok(match name {
        "euler" => Box::new(EULER),
        "heun" => Box::new(HEUN),
        "adams1" => Box::new(AdamsBashforth::new(1)?),
        "adams" | "adams2" => Box::new(AdamsBashforth::new(2)?),
        "adams3" => Box::new(AdamsBashforth::new(3)?),
        "adams4" => Box::new(AdamsBashforth::new(4)?),
        "dpm2" => Box::new(Dpm2),
        "euler-maruyama" => Box::new(EulerMaruyama::ddt()),
        "euler-maruyama-repa" => Box::new(EulerMaruyama::repa()),
        "dopri5" => Box::new(Dopri5::new(Dopri5::DEFAULT_TOLERANCE)?),
        _ => match name.strip_prefix("dopri5:").and_then(|it| it.parse().ok()) {
            Some(tolerance) => Box::new(Dopri5::new(tolerance)?),
            None => {
                let known = format!("one of {}", SOLVER_NAMES.join(", "));
                return Err(FlowError::invalid("solver", known, name));
            }
        },
    })
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
        assert!(solver_by_name("dopri5:2").unwrap_err().to_string().contains("tolerance"));
        assert_eq!(solver_by_name("dopri5:1e-6").unwrap().name(), "dopri5:1e-6");
        for name in ["", "Euler", "adams5", "heun3", "dopri5:", "dopri5:x"] {
            let message = solver_by_name(name).unwrap_err().to_string();
            assert!(message.contains(&format!("got {name:?}")));
            assert!(SOLVER_NAMES.iter().all(|known| message.contains(known)));
        }
    }
}
