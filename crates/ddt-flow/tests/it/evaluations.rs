//! What every solver asks of a model: evaluations inside the step at hand, guided as its start is.

use std::ops::ControlFlow;

use candle_core::{Device, Result, Tensor};
use ddt_flow::{
    ClassConditional, Evaluation, Guidance, Guided, CfgBatch, SOLVER_NAMES, TimeGrid, noise_batch, solve,
    solver_by_name,
};

/// Velocity `cos(3 t) - x_t` with the class and `-x_t` without; remembers what it was asked for.
struct Recorder;

impl ClassConditional for Recorder {
    type State = Vec<(Evaluation, CfgBatch)>;

    fn velocity_rows(
        &self,
        x_t: &Tensor,
        at: Evaluation,
        rows: CfgBatch,
        asked: &mut Self::State,
    ) -> Result<Tensor> {
        asked.push((at, rows));
        let class = x_t.affine(-1.0, (3.0 * at.t).cos())?;
        match rows {
            CfgBatch::Cond => Ok(class),
            CfgBatch::CondUncond => Tensor::cat(&[class, x_t.neg()?], 0),
        }
    }
}

#[test]
fn lie_in_the_step_and_are_guided_as_it_is() {
    let grid = TimeGrid::new(7, Some(0.04), 1.3).unwrap();
    let guided = Guided { model: Recorder, guidance: Guidance::new(2.0, (0.3, 0.8)).unwrap() };
    let noise = noise_batch(0, &[0, 1, 2], (2, 4, 4), &Device::Cpu).unwrap();
    for name in SOLVER_NAMES {
        let solver = solver_by_name(name).unwrap();
        let (mut asked, mut reported) = (Vec::new(), 0);
        let latents = solve(&guided, solver.as_ref(), &grid, &noise, &mut asked, &mut |report| {
            assert!(report.evaluations > 0);
            reported += report.evaluations;
            ControlFlow::Continue(())
        });
        assert_eq!(latents.unwrap().dims(), noise.dims(), "{name}");
        assert_eq!(reported, asked.len(), "{name}");
        assert!(asked.windows(2).all(|pair| pair[0].0.step <= pair[1].0.step), "{name}");
        for (at, rows) in asked {
            let step = grid.step(at.step).unwrap();
            assert_eq!(at.step_t, step.t, "{name}");
            assert!((step.t..=step.t_next).contains(&at.t), "{name} {at:?}");
            assert_eq!(rows == CfgBatch::CondUncond, guided.guidance.is_guided(step.t), "{name} {at:?}");
        }
    }
}

#[test]
fn are_as_many_as_the_method_needs() {
    let grid = TimeGrid::new(5, None, 1.0).unwrap();
    let noise = noise_batch(0, &[0], (1, 2, 2), &Device::Cpu).unwrap();
    let calls = |name: &str| {
        let (mut asked, guided) = (Vec::new(), Guided { model: Recorder, guidance: Guidance::none() });
        let solver = solver_by_name(name).unwrap();
        let go_on = &mut |_: &ddt_flow::StepReport<'_>| ControlFlow::Continue(());
        solve(&guided, solver.as_ref(), &grid, &noise, &mut asked, go_on).unwrap();
        asked.len()
    };
    for name in ["euler", "adams4", "dpm2", "euler-maruyama", "euler-maruyama-repa"] {
        assert_eq!(calls(name), 5, "{name}");
    }
    assert_eq!(calls("heun"), 10);
    assert!(calls("dopri5:1e-7") > calls("dopri5:0.5"));
    assert_eq!(calls("dopri5:0.9"), 5 * 7);
}
