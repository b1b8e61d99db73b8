//! Explicit Runge-Kutta methods as data: Euler, Heun, and the adaptive pair of Dormand and Prince.

use candle_core::{DType, Result, Tensor, bail};

use super::base::{History, Solver, Velocity, weighted_sum};
use crate::error::FlowError;
use crate::time_grid::Step;

/// An explicit Runge-Kutta method: its Butcher tableau.
///
/// ```text
/// k_i = v(x + dt sum_{j<i} a_ij k_j, t + c_i dt),   i = 0, 1, ...   (c_0 = 0)
/// x  <- x + dt sum_i b_i k_i
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RungeKutta {
    name: &'static str,
    order: usize,
    /// `c_i` and `a_ij` of every stage after the first.
    stages: &'static [(f64, &'static [f64])],
    /// `b_i`.
    weights: &'static [f64],
}

/// Euler's method: one evaluation per step, at its start. The tables of arXiv:2504.05741 use 250 such steps.
pub const EULER: RungeKutta = RungeKutta { name: "euler", order: 1, stages: &[], weights: &[1.0] };

/// Heun's method, the trapezoid rule with an Euler step as its guess: two evaluations per step.
///
/// The last step evaluates at `t = 1`, as SiT's published sampler does.
pub const HEUN: RungeKutta =
    RungeKutta { name: "heun", order: 2, stages: &[(1.0, &[1.0])], weights: &[0.5, 0.5] };

/// Dormand and Prince's method of order 5. The last stage is at the solution itself, so its slope is the
/// first one of the next step.
const DORMAND_PRINCE: RungeKutta = RungeKutta {
    name: "dopri5",
    order: 5,
    stages: &[
        (1.0 / 5.0, &[1.0 / 5.0]),
        (3.0 / 10.0, &[3.0 / 40.0, 9.0 / 40.0]),
        (4.0 / 5.0, &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0]),
        (8.0 / 9.0, &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0]),
        (1.0, &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0]),
        (1.0, &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0]),
    ],
    weights: &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0, 0.0],
};

/// The solution of order 5 minus the embedded one of order 4.
const ERROR: [f64; 7] =
    [71.0 / 57600.0, 0.0, -71.0 / 16695.0, 71.0 / 1920.0, -17253.0 / 339_200.0, 22.0 / 525.0, -1.0 / 40.0];

impl RungeKutta {
    /// Slopes `k_i` of a step from `x`, given the first, and the latents of the last stage.
    fn slopes(
        &self,
        velocity: Velocity<'_>,
        first: Tensor,
        x: &Tensor,
        at: SubStep,
    ) -> Result<(Vec<Tensor>, Tensor)> {
        let mut slopes = vec![first];
        let mut point = x.clone();
        for (node, weights) in self.stages {
            point = (x + (weighted_sum(weights, &slopes)? * at.dt)?)?;
            slopes.push(velocity(&point, at.step.at(at.time(*node)))?);
        }
        Ok((slopes, point))
    }
}

/// A part of a step of the grid, of length `dt`.
#[derive(Clone, Copy)]
struct SubStep {
    step: Step,
    t: f64,
    dt: f64,
    /// Whether it ends where the step does.
    is_last: bool,
}

impl SubStep {
    /// Time of a stage; the end of the step is met exactly.
    fn time(self, node: f64) -> f64 {
        if self.is_last && node == 1.0 { self.step.t_next } else { self.t + node * self.dt }
    }
}

impl Solver for RungeKutta {
    fn name(&self) -> &str {
        self.name
    }

    fn order(&self) -> usize {
        self.order
    }

    fn step(&self, velocity: Velocity<'_>, x: &Tensor, step: Step, _: &mut History) -> Result<Tensor> {
        let whole = SubStep { step, t: step.t, dt: step.dt(), is_last: true };
        let first = velocity(x, step.start())?;
        let (slopes, _) = self.slopes(velocity, first, x, whole)?;
        x + (weighted_sum(self.weights, &slopes)? * step.dt())?
    }
}

/// Dormand and Prince's pair of orders 5 and 4, which divides every step of a grid until its error is small
/// enough.
///
/// ```text
/// error = max over samples of rms over elements of |x5 - x4| / (tolerance (1 + max(|x|, |x5|))) <= 1
/// next length = length * clamp(0.9 error^(-1/5), 0.2, 5)
/// ```
///
/// Six evaluations per sub-step, one more at the start of each step of the grid. A sub-step never crosses the
/// grid's times: each evaluation belongs to the step whose interval contains it, for guidance and for
/// sharing alike. So a grid of few steps leaves the choice to the pair, and one that resolves the guidance
/// interval keeps its jump out of every sub-step. The last step evaluates at `t = 1`.
///
/// All samples of a batch take the same sub-steps, those of the hardest sample: another batch may change a
/// sample, within the tolerance.
#[derive(Clone, Debug, PartialEq)]
pub struct Dopri5 {
    tolerance: f64,
    name: String,
}

/// A sub-step this short is accepted whatever its error: f32 latents would not notice it.
const SHORTEST: f64 = 1e-7;
/// Most sub-steps per step of a grid, far above what a smooth velocity needs.
const MOST_SUBSTEPS: usize = 10_000;

impl Dopri5 {
    /// Tolerance of the plain name `dopri5`.
    pub const DEFAULT_TOLERANCE: f64 = 1e-4;

    /// The pair with a tolerance (unitless), relative to `1 + |x|`.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] unless it is in [1e-12, 1).
    pub fn new(tolerance: f64) -> std::result::Result<Self, FlowError> {
        if !(1e-12..1.0).contains(&tolerance) {
            let expected = "at least 1e-12 and below 1 (1e-4 is usual)";
            return Err(FlowError::invalid("tolerance of an adaptive solver", expected, tolerance));
        }
        let default = tolerance == Self::DEFAULT_TOLERANCE;
        let name = if default { "dopri5".to_owned() } else { format!("dopri5:{tolerance:e}") };
        Ok(Self { tolerance, name })
    }

    /// The tolerance.
    pub fn tolerance(&self) -> f64 {
        self.tolerance
    }

    /// Largest error of the samples, in tolerances.
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
        DORMAND_PRINCE.order
    }

    fn step(&self, velocity: Velocity<'_>, x: &Tensor, step: Step, history: &mut History) -> Result<Tensor> {
        let (mut t, mut x) = (step.t, x.clone());
        let mut first = velocity(&x, step.start())?;
        // The pair's error goes as the fifth power of the length.
        let mut wanted = history.substep().unwrap_or_else(|| self.tolerance.powf(0.2));
        for _ in 0..MOST_SUBSTEPS {
            let remaining = step.t_next - t;
            // A sub-step that nearly reaches the end reaches it.
            let is_last = wanted > 0.99 * remaining;
            let dt = if is_last { remaining } else { wanted };
            let at = SubStep { step, t, dt, is_last };
            let (mut slopes, next) = DORMAND_PRINCE.slopes(velocity, first.clone(), &x, at)?;
            let error = self.error(&(weighted_sum(&ERROR, &slopes)? * dt)?, &x, &next)?;
            if dt <= SHORTEST && !error.is_finite() {
                bail!("step {}: the velocity is not finite near t = {t}; check the weights", step.index);
            }
            let accepted = error <= 1.0 || dt <= SHORTEST;
            // A NaN is as bad as an error can be.
            let factor = if error.is_nan() { 0.2 } else { (0.9 * error.powf(-0.2)).clamp(0.2, 5.0) };
            if !accepted {
                wanted = dt * factor;
                continue;
            }
            // A sub-step cut short by the end of the step is no reason for a shorter next one.
            wanted = if is_last { wanted.max(dt * factor) } else { dt * factor };
            if is_last {
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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::Evaluation;
    use crate::time_grid::TimeGrid;

    #[test]
    fn coefficients_add_up() {
        for method in [EULER, HEUN, DORMAND_PRINCE] {
            assert_eq!(method.weights.len(), method.stages.len() + 1);
            assert!((method.weights.iter().sum::<f64>() - 1.0).abs() < 1e-14);
            for (stage, (node, weights)) in method.stages.iter().enumerate() {
                assert_eq!(weights.len(), stage + 1);
                assert!((weights.iter().sum::<f64>() - node).abs() < 1e-14);
            }
        }
        assert!(ERROR.iter().sum::<f64>().abs() < 1e-15);
    }

    fn run(
        velocity: &dyn Fn(&Tensor, f64) -> Result<Tensor>,
        steps: usize,
        tolerance: f64,
    ) -> (Result<Tensor>, usize) {
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
            assert!(matches!(Dopri5::new(tolerance), Err(FlowError::Invalid { .. })));
        }
        assert_eq!(Dopri5::new(1e-4).unwrap().name(), "dopri5");
        assert_eq!(Dopri5::new(2.5e-6).unwrap().name(), "dopri5:2.5e-6");
    }
}
