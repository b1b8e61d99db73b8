//! The loop from noise to latents.

use std::cell::Cell;
use std::ops::ControlFlow;

use candle_core::{DType, Tensor, bail};

use crate::error::{FlowError, Result};
use crate::model::{Evaluation, VelocityModel};
use crate::solver::{History, Solver};
use crate::time_grid::{Step, TimeGrid};

/// Report of a completed step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport<'a> {
    /// The completed step.
    pub step: Step,
    /// Number of steps of the whole run.
    pub num_steps: usize,
    /// Number of velocity evaluations in this step.
    pub evaluations: usize,
    /// The latents at `step.t_next`, (B, ...) in f32 and finite.
    pub latents: &'a Tensor,
}

/// Integrates `dx/dt = v(x, t)` from `noise` at `t = 0` to latents at `t = 1`.
///
/// `state` holds the model's cached values; pass a fresh default for each run.
/// `on_step` runs after each step, for progress or previews, and stops the run with `ControlFlow::Break`;
/// a break after the last step still returns the latents.
///
/// No gradients flow through the result: each step drops its computation graph.
///
/// # Shapes
/// `noise`: (B, ...) in any float type -> (B, ...) in f32
///
/// # Errors
/// [`FlowError::Invalid`] if `noise` has no samples or no elements;
/// [`FlowError::NonFinite`] as soon as a sample is not finite;
/// [`FlowError::Cancelled`] if `on_step` breaks before the last step;
/// [`FlowError::Candle`] if the model fails, or returns a velocity of another shape than its input.
pub fn solve<M: VelocityModel + ?Sized>(
    model: &M,
    solver: &dyn Solver,
    grid: &TimeGrid,
    noise: &Tensor,
    state: &mut M::State,
    on_step: &mut dyn FnMut(&StepReport<'_>) -> ControlFlow<()>,
) -> Result<Tensor> {
    if noise.rank() == 0 || noise.elem_count() == 0 {
        let expected = "of shape (B, ...) without empty dimensions";
        return Err(FlowError::invalid("noise", expected, noise.dims()));
    }
    let num_steps = grid.num_steps();
    let evaluations = Cell::new(0);
    let mut velocity = |x: &Tensor, at: Evaluation| {
        evaluations.set(evaluations.get() + 1);
        let v = model.velocity(x, at, state)?;
        if v.dims() != x.dims() {
            bail!("expected velocities of shape {:?} at step {}, got {:?}", x.dims(), at.step, v.dims());
        }
        // Trainable weights would otherwise keep every step's graph alive.
        Ok(v.to_dtype(DType::F32)?.detach())
    };

    let mut latents = noise.to_dtype(DType::F32)?.detach();
    let mut history = History::default();
    for step in grid.steps() {
        latents = solver.step(&mut velocity, &latents, step, &mut history)?;
        if let Some(sample) = first_non_finite(&latents)? {
            return Err(FlowError::NonFinite { step: step.index, t: step.t, sample });
        }
        let report = StepReport { step, num_steps, evaluations: evaluations.take(), latents: &latents };
        if on_step(&report).is_break() && step.index + 1 < num_steps {
            return Err(FlowError::Cancelled { step: step.index, num_steps });
        }
    }
    Ok(latents)
}

/// The first sample of (B, ...) that holds an infinity or a NaN.
fn first_non_finite(x: &Tensor) -> candle_core::Result<Option<usize>> {
    let batch = x.dim(0)?;
    // 0 times a finite number is 0, times anything else NaN: unlike a plain sum it cannot overflow.
    let sums = (x.reshape((batch, ()))? * 0.0)?.sum(1)?.to_vec1::<f32>()?; // (B)
    Ok(sums.iter().position(|sum| sum.is_nan()))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::model::FromFn;
    use crate::solver::{EULER, solver_by_name};

    fn go_on(_: &StepReport<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn noise() -> Tensor {
        Tensor::new(&[[1f32, -2.0], [0.5, 3.0], [0.0, 1.0]], &Device::Cpu).unwrap()
    }

    fn grid(num_steps: usize) -> TimeGrid {
        TimeGrid::new(num_steps, None, 1.0).unwrap()
    }

    #[test]
    fn reports_every_step_once_and_ends_where_euler_ends() {
        let model = FromFn::new(|x_t, _| Ok(x_t.clone()));
        let mut seen = Vec::new();
        let latents = solve(&model, &EULER, &grid(4), &noise(), &mut (), &mut |report| {
            seen.push((report.step.index, report.step.t_next, report.num_steps));
            ControlFlow::Continue(())
        });
        assert_eq!(seen, [(0, 0.25, 4), (1, 0.5, 4), (2, 0.75, 4), (3, 1.0, 4)]);
        let expected = (noise() * 1.25f64.powi(4)).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(latents.unwrap().to_vec2::<f32>().unwrap(), expected);
    }

    #[test]
    fn state_is_passed_from_step_to_step() {
        struct Counting;
        impl VelocityModel for Counting {
            type State = Vec<Evaluation>;
            fn velocity(
                &self,
                x_t: &Tensor,
                at: Evaluation,
                seen: &mut Vec<Evaluation>,
            ) -> candle_core::Result<Tensor> {
                seen.push(at);
                x_t.zeros_like()
            }
        }
        let mut seen = Vec::new();
        let adams = solver_by_name("adams3").unwrap();
        solve(&Counting, adams.as_ref(), &grid(5), &noise(), &mut seen, &mut go_on).unwrap();
        let expected: Vec<Evaluation> = grid(5).steps().map(Step::start).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn cancelling_is_a_typed_error() {
        let model = FromFn::new(|x_t, _| Ok(x_t.clone()));
        let stop_at = |last: usize| {
            solve(&model, &EULER, &grid(4), &noise(), &mut (), &mut |report| {
                if report.step.index == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        };
        assert!(matches!(stop_at(1), Err(FlowError::Cancelled { step: 1, num_steps: 4 })));
        assert!(stop_at(3).is_ok());
    }

    #[test]
    fn a_non_finite_latent_names_step_time_and_sample() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let spoiled = Tensor::new(&[[0f32, 0.0], [0.0, 0.0], [0.0, bad]], &Device::Cpu).unwrap();
            let model = FromFn::new(|x_t, t| if t < 0.5 { x_t.zeros_like() } else { Ok(spoiled.clone()) });
            let err = solve(&model, &EULER, &grid(4), &noise(), &mut (), &mut go_on).unwrap_err();
            assert!(matches!(err, FlowError::NonFinite { step: 2, t: 0.5, sample: 2 }), "{err}");
        }
    }

    #[test]
    fn huge_but_finite_latents_pass() {
        let model = FromFn::new(|x_t, _| x_t.zeros_like());
        let huge = (noise().ones_like().unwrap() * f64::from(f32::MAX)).unwrap();
        assert!(solve(&model, &EULER, &grid(1), &huge, &mut (), &mut go_on).is_ok());
    }

    #[test]
    fn half_precision_in_gives_f32_out() {
        let model = FromFn::new(|x_t, _| x_t.to_dtype(DType::BF16));
        let half = noise().to_dtype(DType::BF16).unwrap();
        let latents = solve(&model, &EULER, &grid(2), &half, &mut (), &mut go_on).unwrap();
        assert_eq!(latents.dtype(), DType::F32);
    }

    #[test]
    fn no_graph_is_kept() {
        let weight = Var::new(2f32, &Device::Cpu).unwrap();
        let model = FromFn::new(|x_t, _| x_t.broadcast_mul(&weight));
        let latents = solve(&model, &EULER, &grid(3), &noise(), &mut (), &mut go_on).unwrap();
        assert!(!latents.track_op());
    }

    #[test]
    fn misshapen_input_and_velocity_are_errors() {
        let model = FromFn::new(|x_t, _| x_t.narrow(0, 0, 1));
        let err = solve(&model, &EULER, &grid(2), &noise(), &mut (), &mut go_on).unwrap_err();
        assert!(err.to_string().contains("[3, 2]") && err.to_string().contains("[1, 2]"), "{err}");
        for shape in [&[][..], &[0, 2], &[2, 0]] {
            let empty = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            let err = solve(&model, &EULER, &grid(2), &empty, &mut (), &mut go_on).unwrap_err();
            assert!(matches!(err, FlowError::Invalid { what: "noise", .. }), "{err}");
        }
    }
}
