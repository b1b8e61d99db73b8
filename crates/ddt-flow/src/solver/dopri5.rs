//! An embedded pair that chooses its own steps: Dormand and Prince's 5(4).

use candle_core::{DType, Result, Tensor, bail};

use super::{History, Solver};
use crate::error::FlowError;
use crate::model::Evaluation;
use crate::time_grid::Step;

/// Dormand and Prince's pair of orders 5 and 4, which divides every step of a grid until its error is small
/// enough.
///
/// ```text
/// error = max over samples of rms over elements of |x5 - x4| / (tolerance (1 + max(|x|, |x5|))) <= 1
/// next length = length * clamp(0.9 error^(-1/5), 0.2, 5)
/// ```
///
/// Six evaluations a sub-step, one more at the first of each step of the grid. A sub-step never crosses the
/// grid's times: each evaluation belongs to the step whose interval it lies in, for guidance and for
/// sharing alike, so a grid of few steps leaves the choice to the pair, and one that resolves the guidance
/// interval keeps its jump out of every sub-step. The last step evaluates at `t = 1`.
///
/// All samples of a batch take the same sub-steps, those of the hardest: another batch may change a sample,
/// within the tolerance.
#[derive(Clone, Debug, PartialEq)]
pub struct Dopri5 {
    tolerance: f64,
    name: String,
}

/// Times of the stages, in lengths of the sub-step.
const NODES: [f64; 6] = [0.2, 0.3, 0.8, 8.0 / 9.0, 1.0, 1.0];
/// What each stage after the first adds of those before; the last row is the solution of order 5.
const STAGES: [&[f64]; 6] = [
    &[1.0 / 5.0],
    &[3.0 / 40.0, 9.0 / 40.0],
    &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
    &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0],
    &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0],
    &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
];
/// The solution of order 5 less that of order 4.
const ERROR: [f64; 7] =
    [71.0 / 57600.0, 0.0, -71.0 / 16695.0, 71.0 / 1920.0, -17253.0 / 339_200.0, 22.0 / 525.0, -1.0 / 40.0];
/// Below this length a sub-step is taken whatever its error: f32 latents would not notice it.
const SHORTEST: f64 = 1e-7;
/// Sub-steps of one step of a grid; far above what a smooth velocity needs.
const MOST_SUBSTEPS: usize = 10_000;

impl Dopri5 {
    /// The tolerance of the name alone.
    pub const DEFAULT_TOLERANCE: f64 = 1e-4;

    /// The pair with a tolerance (unitless), relative to `1 + |x|`.
    ///
    /// # Errors
    ///
    /// [`FlowError::Tolerance`] unless it is in [1e-12, 1).
    pub fn new(tolerance: f64) -> std::result::Result<Self, FlowError> {
        if !(1e-12..1.0).contains(&tolerance) {
            return Err(FlowError::Tolerance { got: tolerance });
        }
        let default = tolerance == Self::DEFAULT_TOLERANCE;
        let name = if default { "dopri5".to_owned() } else { format!("dopri5:{tolerance:e}") };
        Ok(Self { tolerance, name })
    }

    /// The tolerance.
    pub fn tolerance(&self) -> f64 {
        self.tolerance
    }

    /// The largest of the samples' errors, in tolerances.
    fn error(&self, error: &Tensor, x: &Tensor, next: &Tensor) -> Result<f64> {
        let allowed = x.abs()?.maximum(&next.abs()?)?.affine(self.tolerance, self.tolerance)?;
        let ratio = (error / allowed)?.sqr()?;
        let batch = ratio.dims().first().copied().unwrap_or(1);
        let worst = ratio.reshape((batch, ()))?.mean(1)?.max(0)?; // scalar
        Ok(worst.to_dtype(DType::F64)?.to_scalar::<f64>()?.sqrt())
    }
}

impl Solver for Dopri5 {
    fn name(&self) -> &str {
        &self.name
    }

    fn order(&self) -> usize {
        5
    }

    fn step(
        &self,
        velocity: &mut dyn FnMut(&Tensor, Evaluation) -> Result<Tensor>,
        x: &Tensor,
        step: Step,
        history: &mut History,
    ) -> Result<Tensor> {
        let (mut t, mut x) = (step.t, x.clone());
        let mut first = velocity(&x, step.start())?;
        // The pair's error goes as the fifth power of the length.
        let mut wanted = history.substep().unwrap_or_else(|| self.tolerance.powf(0.2));
        for _ in 0..MOST_SUBSTEPS {
            let remaining = step.t_next - t;
            // A sub-step that nearly reaches the end reaches it.
            let whole = wanted > 0.99 * remaining;
            let dt = if whole { remaining } else { wanted };
            let mut slopes = vec![first.clone()];
            let mut next = x.clone();
            for (weights, node) in STAGES.iter().zip(NODES) {
                next = (&x + (weighted(weights, &slopes)? * dt)?)?;
                let at = if whole && node == 1.0 { step.t_next } else { t + node * dt };
                slopes.push(velocity(&next, step.at(at))?);
            }
            let error = self.error(&(weighted(&ERROR, &slopes)? * dt)?, &x, &next)?;
            if dt <= SHORTEST && !error.is_finite() {
                bail!("step {}: the velocity is not finite near t = {t}; check the weights", step.index);
            }
            let accepted = error <= 1.0 || dt <= SHORTEST;
            // An error that is no number is as bad as can be; one of zero as good.
            let factor = if error.is_nan() { 0.2 } else { (0.9 * error.powf(-0.2)).clamp(0.2, 5.0) };
            if !accepted {
                wanted = dt * factor;
                continue;
            }
            // What the end of the step cut short says nothing against a longer one.
            wanted = if whole { wanted.max(dt * factor) } else { dt * factor };
            if whole {
                history.propose_substep(wanted);
                return Ok(next);
            }
            (t, x) = (t + dt, next);
            first = slopes.pop().unwrap_or(first);
        }
        bail!(
            "step {}: more than {MOST_SUBSTEPS} sub-steps from t = {} and only at t = {t}; \
             raise the tolerance of {:e}",
            step.index,
            step.t,
            self.tolerance
        )
    }
}

/// Sum of the slopes by these weights; weights of zero cost nothing.
fn weighted(weights: &[f64], slopes: &[Tensor]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (weight, slope) in weights.iter().zip(slopes).filter(|(weight, _)| **weight != 0.0) {
        let term = (slope * *weight)?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => bail!("expected at least one slope"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::time_grid::TimeGrid;

    type Velocity<'a> = &'a dyn Fn(&Tensor, f64) -> Result<Tensor>;

    fn run(velocity: Velocity<'_>, steps: usize, tolerance: f64) -> (Result<Tensor>, usize) {
        let solver = Dopri5::new(tolerance).unwrap();
        let mut calls = 0;
        let mut history = History::default();
        let mut counted = |x: &Tensor, at: Evaluation| {
            calls += 1;
            assert!(at.step_t <= at.t && at.t <= 1.0);
            velocity(x, at.t)
        };
        let start = Tensor::new(&[[1f64], [2.0]], &Device::Cpu);
        let end = TimeGrid::new(steps, None, 1.0)
            .unwrap()
            .steps()
            .fold(start, |x, step| solver.step(&mut counted, &x?, step, &mut history));
        (end, calls)
    }

    #[test]
    fn coefficients_add_up() {
        for (stage, node) in STAGES.iter().zip(NODES) {
            assert!((stage.iter().sum::<f64>() - node).abs() < 1e-14);
        }
        assert!(ERROR.iter().sum::<f64>().abs() < 1e-15);
    }

    #[test]
    fn straight_lines_take_few_sub_steps() {
        let (end, calls) = run(&|x, _| x.ones_like(), 1, 0.5);
        let end = end.unwrap().to_vec2::<f64>().unwrap();
        assert!((end[0][0] - 2.0).abs() < 1e-14 && (end[1][0] - 3.0).abs() < 1e-14);
        assert_eq!(calls, 7 + 6);
        assert_eq!(run(&|x, _| x.ones_like(), 4, 0.5).1, 4 * 7);
    }

    #[test]
    fn velocities_that_cannot_be_followed_are_errors_soon() {
        let (end, calls) = run(&|x, _| x * f64::NAN, 1, 1e-4);
        assert!(end.unwrap_err().to_string().contains("not finite"));
        assert!(calls < 100, "{calls}");
        let (end, calls) = run(&|x, t| x.affine(0.0, 1e9 * (1e9 * t).sin()), 1, 1e-10);
        assert!(end.unwrap_err().to_string().contains("tolerance"));
        assert!(calls <= 6 * MOST_SUBSTEPS + 1);
    }

    #[test]
    fn tolerances_are_checked_and_named() {
        for tolerance in [0.0, 1.0, -1.0, f64::NAN] {
            assert!(matches!(Dopri5::new(tolerance), Err(FlowError::Tolerance { .. })));
        }
        assert_eq!(Dopri5::new(1e-4).unwrap().name(), "dopri5");
        assert_eq!(Dopri5::new(2.5e-6).unwrap().name(), "dopri5:2.5e-6");
    }
}
