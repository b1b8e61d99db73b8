//! Sweeps: errors of solvers against a fine reference.

use candle_core::{DType, Result, Tensor, bail};
use ddt::flow::{FlowError, Solver, TimeGrid};

/// Solver, number of steps and time shift of a sampling run.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The solver's name, as [`ddt::flow::solver_by_name`] knows it.
    pub solver: String,
    /// Number of steps.
    pub num_steps: usize,
    /// Time shift; above 1 for more steps near noise.
    pub timeshift: f64,
}

/// Result of a sampling run.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The setting.
    pub setting: Setting,
    /// Number of velocity evaluations.
    pub evaluations: usize,
    /// Relative root-mean-square distance from the reference.
    pub error: f64,
}

/// All combinations: for each solver, for each shift, all numbers of steps.
pub fn sweep_settings(solvers: &[&str], timeshifts: &[f64], steps: &[usize]) -> Vec<Setting> {
    let mut all = Vec::with_capacity(solvers.len() * timeshifts.len() * steps.len());
    for solver in solvers {
        for &timeshift in timeshifts {
            for &num_steps in steps {
                all.push(Setting { solver: (*solver).to_owned(), num_steps, timeshift });
            }
        }
    }
    all
}

/// Samples with each setting and measures the distance from `reference`: Fig. 4 of arXiv:2504.05741 with a
/// distance instead of a metric.
///
/// `run` samples from the noise of the reference and returns the latents and the number of velocity
/// evaluations. The steps are even except for the shift: the last one is not longer.
///
/// # Errors
/// An unknown solver or a bad grid; errors of `run`; latents of another shape than the reference's.
pub fn sweep<E: From<FlowError> + From<candle_core::Error>>(
    settings: &[Setting],
    reference: &Tensor,
    mut run: impl FnMut(&dyn Solver, &TimeGrid) -> std::result::Result<(Tensor, usize), E>,
) -> std::result::Result<Vec<Measured>, E> {
    let mut measured = Vec::with_capacity(settings.len());
    for setting in settings {
        let solver = ddt::flow::solver_by_name(&setting.solver)?;
        let grid = TimeGrid::new(setting.num_steps, None, setting.timeshift)?;
        let (latents, evaluations) = run(solver.as_ref(), &grid)?;
        let error = relative_rms(&latents, reference)?;
        measured.push(Measured { setting: setting.clone(), evaluations, error });
    }
    Ok(measured)
}

/// Root-mean-square of the difference relative to that of `want`, in f64.
///
/// # Errors
/// Shapes differ, or there are no elements.
pub fn relative_rms(got: &Tensor, want: &Tensor) -> Result<f64> {
    if got.dims() != want.dims() || got.elem_count() == 0 {
        bail!("expected two non-empty tensors of one shape, got {:?} and {:?}", got.dims(), want.dims());
    }
    let (got, want) = (got.to_dtype(DType::F64)?, want.to_dtype(DType::F64)?);
    let square = |it: Tensor| it.sqr()?.mean_all()?.to_scalar::<f64>();
    Ok((square((got - &want)?)? / square(want)?).sqrt())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use candle_core::Device;
    use ddt::flow::{FromFn, noise_batch, solve, solver_by_name};

    use super::*;
    use crate::diffusion::{Component, Mixture, Schedule};

    /// The exact velocity of a mixture, element by element.
    fn velocity(x_t: &Tensor, t: f64) -> Result<Tensor> {
        let data = Mixture {
            components: [(-1.0, 0.5), (1.0, 0.5)]
                .map(|(mean, std)| Component { weight: 1.0, mean, std })
                .to_vec(),
        };
        let values = x_t.flatten_all()?.to_vec1::<f32>()?;
        let v: Vec<f32> =
            values.iter().map(|x| data.velocity(Schedule::Linear, f64::from(*x), t) as f32).collect();
        Tensor::from_vec(v, x_t.shape(), x_t.device())
    }

    fn run(
        noise: &Tensor,
        solver: &dyn Solver,
        grid: &TimeGrid,
    ) -> std::result::Result<(Tensor, usize), FlowError> {
        let mut evaluations = 0;
        let latents = solve(&FromFn::new(velocity), solver, grid, noise, &mut (), &mut |report| {
            evaluations += report.evaluations;
            ControlFlow::Continue(())
        })?;
        Ok((latents, evaluations))
    }

    #[test]
    fn errors_fall_with_steps_and_with_order() {
        let noise = noise_batch(0, &[0, 1], (2, 4, 4), &Device::Cpu).unwrap();
        let fine = TimeGrid::new(64, None, 1.0).unwrap();
        let reference = run(&noise, solver_by_name("dopri5:1e-7").unwrap().as_ref(), &fine).unwrap().0;
        let all = sweep_settings(&["euler", "adams2", "heun"], &[1.0, 2.0], &[8, 16, 32]);
        assert_eq!(all.len(), 18);
        let measured = sweep(&all, &reference, |solver, grid| run(&noise, solver, grid)).unwrap();
        for line in measured.chunks(3) {
            assert!(line.windows(2).all(|pair| pair[1].error < pair[0].error), "{line:?}");
        }
        let error = |solver: &str, steps: usize, shift: f64| {
            let fits = |it: &&Measured| {
                it.setting.solver == solver && it.setting.num_steps == steps && it.setting.timeshift == shift
            };
            measured.iter().find(fits).unwrap().error
        };
        assert!(error("adams2", 32, 1.0) < 0.5 * error("euler", 32, 1.0));
        let heun = measured.iter().find(|it| it.setting.solver == "heun").unwrap();
        assert_eq!((heun.setting.num_steps, heun.evaluations), (8, 16));
    }

    #[test]
    fn what_cannot_be_compared_is_an_error() {
        let noise = noise_batch(0, &[0], (1, 2, 2), &Device::Cpu).unwrap();
        let all = sweep_settings(&["nonesuch"], &[1.0], &[4]);
        let refused = sweep(&all, &noise, |solver, grid| run(&noise, solver, grid));
        assert!(matches!(refused, Err(FlowError::Invalid { what: "solver", .. })));
        let other = noise_batch(0, &[0, 1], (1, 2, 2), &Device::Cpu).unwrap();
        let all = sweep_settings(&["euler"], &[1.0], &[4]);
        assert!(sweep(&all, &other, |solver, grid| run(&noise, solver, grid)).is_err());
        assert!(relative_rms(&noise, &other).is_err());
    }
}
