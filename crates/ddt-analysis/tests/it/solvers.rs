//! A sweep on a flow in closed form ranks solvers and shifts as theory does.

use std::ops::ControlFlow;

use candle_core::{Device, Result, Tensor};
use ddt_analysis::{Component, Mixture, Schedule, relative_rms, settings, sweep};
use ddt_flow::{FlowError, FromFn, Solver, TimeGrid, noise_batch, solve, solver_by_name};

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
    let all = settings(&["euler", "adams2", "heun"], &[1.0, 2.0], &[8, 16, 32]);
    assert_eq!(all.len(), 18);
    let measured = sweep(&all, &reference, |solver, grid| run(&noise, solver, grid)).unwrap();
    for line in measured.chunks(3) {
        assert!(line.windows(2).all(|pair| pair[1].error < pair[0].error), "{line:?}");
    }
    let error = |solver: &str, steps: usize, shift: f64| {
        let fits = |it: &&ddt_analysis::Measured| {
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
    let all = settings(&["nonesuch"], &[1.0], &[4]);
    let refused = sweep(&all, &noise, |solver, grid| run(&noise, solver, grid));
    assert!(matches!(refused, Err(FlowError::Invalid { what: "solver", .. })));
    let other = noise_batch(0, &[0, 1], (1, 2, 2), &Device::Cpu).unwrap();
    let all = settings(&["euler"], &[1.0], &[4]);
    assert!(sweep(&all, &other, |solver, grid| run(&noise, solver, grid)).is_err());
    assert!(relative_rms(&noise, &other).is_err());
}
