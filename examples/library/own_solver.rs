//! A velocity model and a solver of one's own, without any network.
//!
//! The model is the exact velocity that carries noise to eight points on a circle. The solver is the midpoint rule. The
//! table shows that its error falls with the square of the step, where Euler's falls with the step.
//!
//! ```sh
//! cargo run --example own_solver
//! ```

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::{f64::consts::TAU, ops::ControlFlow};

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use ddt_flow::{
    EULER, Evaluation, HEUN, History, Solver, Step, TimeGrid, Velocity, VelocityModel, noise_batch, solve,
};

/// Spread of the data around each point.
const SPREAD: f64 = 0.2;

/// Flow from standard normal noise to a mixture of normal distributions around `points`, `(P, 2)`.
struct Circle {
    points: Tensor,
}

impl VelocityModel for Circle {
    /// Nothing is kept between evaluations.
    type State = ();

    /// With `x_t = t data + (1 - t) noise` and `var = (1 - t)^2 + t^2 SPREAD^2`, for one point `p`:
    ///
    /// ```text
    /// v = p + (t SPREAD^2 - (1 - t)) / var (x_t - t p)
    /// ```
    ///
    /// The whole mixture's velocity is the mean of these, weighted by how likely each point is given `x_t`.
    fn velocity(&self, x_t: &Tensor, at: Evaluation, (): &mut ()) -> candle_core::Result<Tensor> {
        let t = at.t;
        let var = (1.0 - t).powi(2) + (t * SPREAD).powi(2);
        let points = self.points.unsqueeze(0)?; // (1, P, 2)
        let from_mean = x_t.unsqueeze(1)?.broadcast_sub(&(&points * t)?)?; // (B, P, 2)
        let logits = (from_mean.sqr()?.sum(D::Minus1)? * (-0.5 / var))?; // (B, P)
        let weights = logits.broadcast_sub(&logits.max_keepdim(1)?)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(1)?)?;
        let slope = (t * SPREAD * SPREAD - (1.0 - t)) / var;
        let velocities = (from_mean * slope)?.broadcast_add(&points)?;
        velocities.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1) // (B, 2)
    }
}

/// The midpoint rule: half a step with the velocity at its start, then a whole one with the velocity in its middle.
#[derive(Debug)]
struct Midpoint;

impl Solver for Midpoint {
    fn name(&self) -> &str {
        "midpoint"
    }

    fn order(&self) -> usize {
        2
    }

    fn step(
        &self,
        velocity: Velocity<'_>,
        x: &Tensor,
        step: Step,
        _history: &mut History,
    ) -> candle_core::Result<Tensor> {
        let middle = (x + (velocity(x, step.start())? * (step.dt() / 2.0))?)?;
        x + (velocity(&middle, step.at(step.t + step.dt() / 2.0))? * step.dt())?
    }
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    let angles = Tensor::arange(0.0, 8.0, &device)?.affine(TAU / 8.0, 0.0)?;
    let points = (Tensor::stack(&[angles.cos()?, angles.sin()?], 1)? * 2.0)?.to_dtype(DType::F32)?; // (8, 2)
    let model = Circle { points };
    let noise = noise_batch(0, &(0..512).collect::<Vec<_>>(), (1, 1, 2), &device)?.reshape((512, 2))?;
    let run = |solver: &dyn Solver, steps| -> Result<Tensor> {
        let grid = TimeGrid::new(steps, None, 1.0)?;
        Ok(solve(&model, solver, &grid, &noise, &mut (), &mut |_| ControlFlow::Continue(()))?)
    };

    let exact = run(&HEUN, 2000)?;
    println!("{:>6} {:>9} {:>9} {:>9}", "steps", "euler", "midpoint", "heun");
    for steps in [10, 20, 40, 80, 160] {
        print!("{steps:>6}");
        for solver in [&EULER as &dyn Solver, &Midpoint, &HEUN] {
            let error: f32 = (run(solver, steps)? - &exact)?.sqr()?.mean_all()?.sqrt()?.to_scalar()?;
            print!(" {error:>9.5}");
        }
        println!();
    }
    show(&exact.to_vec2()?);
    Ok(())
}

/// The samples as a picture of letters.
fn show(samples: &[Vec<f32>]) {
    let mut rows = vec![[' '; 49]; 25];
    for sample in samples {
        let (column, row) = (24.0 + 9.0 * sample[0], 12.0 - 4.5 * sample[1]);
        if let Some(place) =
            rows.get_mut(row.round() as usize).and_then(|it| it.get_mut(column.round() as usize))
        {
            *place = '*';
        }
    }
    for row in rows {
        println!("{}", String::from_iter(row).trim_end());
    }
}
