//! Errors of solvers against a fine reference.

use candle_core::{DType, Result, Tensor, bail};
use ddt_flow::{FlowError, Solver, TimeGrid};

/// One way of sampling.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The solver's name, as [`ddt_flow::solver_by_name`] knows it.
    pub solver: String,
    /// Number of steps.
    pub num_steps: usize,
    /// How strongly the steps are shifted towards noise.
    pub timeshift: f64,
}

/// What a setting gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The setting.
    pub setting: Setting,
    /// How often the velocity was evaluated.
    pub evaluations: usize,
    /// Relative root-mean-square distance from the reference.
    pub error: f64,
}

/// All combinations, solver by solver, then shift by shift, with increasing numbers of steps as given.
pub fn settings(solvers: &[&str], timeshifts: &[f64], steps: &[usize]) -> Vec<Setting> {
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

/// Samples with each setting, and says how far from `reference` it ends: Fig. 4 of arXiv:2504.05741 with a
/// distance in the place of a metric.
///
/// `run` samples from the noise that the reference was made from, and returns the latents and how often the
/// velocity was evaluated. The steps are even, but for the shift: the last one is not longer.
///
/// # Errors
///
/// An unknown solver or a bad grid; what `run` returns; latents of another shape than the reference's.
pub fn sweep<E: From<FlowError> + From<candle_core::Error>>(
    settings: &[Setting],
    reference: &Tensor,
    mut run: impl FnMut(&dyn Solver, &TimeGrid) -> std::result::Result<(Tensor, usize), E>,
) -> std::result::Result<Vec<Measured>, E> {
    let mut measured = Vec::with_capacity(settings.len());
    for setting in settings {
        let solver = ddt_flow::solver_by_name(&setting.solver)?;
        let grid = TimeGrid::new(setting.num_steps, None, setting.timeshift)?;
        let (latents, evaluations) = run(solver.as_ref(), &grid)?;
        let error = relative_rms(&latents, reference)?;
        measured.push(Measured { setting: setting.clone(), evaluations, error });
    }
    Ok(measured)
}

/// Root-mean-square of the difference over that of `want`, in f64.
///
/// # Errors
///
/// Shapes differ, or there are no elements.
pub fn relative_rms(got: &Tensor, want: &Tensor) -> Result<f64> {
    if got.dims() != want.dims() || got.elem_count() == 0 {
        bail!("expected two non-empty tensors of one shape, got {:?} and {:?}", got.dims(), want.dims());
    }
    let (got, want) = (got.to_dtype(DType::F64)?, want.to_dtype(DType::F64)?);
    let square = |it: Tensor| it.sqr()?.mean_all()?.to_scalar::<f64>();
    Ok((square((got - &want)?)? / square(want)?).sqrt())
}
