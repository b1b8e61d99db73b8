//! Every solver has the order it claims, and evaluates the velocity inside the current step.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

use std::ops::ControlFlow;

use candle_core::{Device, Result, Tensor};
use ddt_flow::{
    AdamsBashforth, CfgBatch, ClassConditional, Dopri5, Dpm2, EulerMaruyama, Evaluation, Guidance, Guided,
    History, SOLVER_NAMES, Solver, Step, TimeGrid, noise_batch, solve, solver_by_name,
};

/// `dx/dt = r x cos(r t + 1)`, `x = exp(sin(r t + 1))`.
fn solution_at(rate: f64, t: f64) -> f64 {
    (rate * t + 1.0).sin().exp()
}

fn velocity_at(rate: f64, x: &Tensor, t: f64) -> Result<Tensor> {
    x * (rate * (rate * t + 1.0).cos())
}

fn solution(t: f64) -> f64 {
    solution_at(2.0, t)
}

fn velocity(x: &Tensor, at: Evaluation) -> Result<Tensor> {
    velocity_at(2.0, x, at.t)
}

fn one(value: f64) -> Tensor {
    Tensor::new(&[value], &Device::Cpu).unwrap()
}

fn number(x: &Tensor) -> f64 {
    x.to_vec1::<f64>().unwrap()[0]
}

/// Start and end of a run.
#[derive(Clone, Copy)]
struct Run {
    /// Skip the first steps and give their exact velocities instead.
    exact_start: bool,
    /// Stop at the end of the last step that ends by this time.
    until: f64,
}

fn error(solver: &dyn Solver, num_steps: usize, run: Run) -> f64 {
    let grid = TimeGrid::new(num_steps, None, 1.0).unwrap();
    let skipped = if run.exact_start { solver.order() - 1 } else { 0 };
    let mut history = History::default();
    for step in grid.steps().take(skipped) {
        let exact = velocity(&one(solution(step.t)), step.start()).unwrap();
        history.push(step.t, exact, skipped);
    }
    let mut x = one(solution(grid.times()[skipped]));
    let mut end = 0.0;
    for step in grid.steps().skip(skipped).filter(|it| it.t_next <= run.until + 1e-9) {
        x = solver.step(&mut velocity, &x, step, &mut history).unwrap();
        assert!(history.len() <= solver.order());
        end = step.t_next;
    }
    (number(&x) - solution(end)).abs()
}

#[track_caller]
fn check(name: &str, coarse: f64, fine: f64, expected: f64) {
    let order = (coarse / fine).log2();
    assert!((order - expected).abs() < 0.1, "{name} has order {order}, not {expected}");
}

/// The variance that a stochastic solver ends with, for data `N(1, 1)` and the exact velocity.
///
/// One step maps `(x, n)` to `a x + b + c n`; three calls of the update give `a` and `c`.
fn final_variance(solver: EulerMaruyama, num_steps: usize) -> f64 {
    let flow = |x: f64, t: f64| 1.0 + (2.0 * t - 1.0) / (t * t + (1.0 - t) * (1.0 - t)) * (x - t);
    let advance = |x: f64, noise: f64, step: Step| {
        number(&solver.advance(&one(x), &one(flow(x, step.t)), &one(noise), step).unwrap())
    };
    TimeGrid::new(num_steps, None, 1.0).unwrap().steps().fold(1.0, |variance, step| {
        let still = advance(0.0, 0.0, step);
        let (a, c) = (advance(1.0, 0.0, step) - still, advance(0.0, 1.0, step) - still);
        a * a * variance + c * c
    })
}

#[test]
fn every_solver_has_its_order() {
    let whole = Run { exact_start: false, until: 1.0 };
    for &name in SOLVER_NAMES {
        let solver = solver_by_name(name).unwrap();
        let errors = |run| [400, 800].map(|num_steps| error(solver.as_ref(), num_steps, run));
        match name {
            "euler" | "heun" => {
                let [coarse, fine] = errors(whole);
                check(name, coarse, fine, solver.order() as f64);
            }
            // As published, the start is Euler's.
            "adams" | "adams1" | "adams2" | "adams3" | "adams4" => {
                let [coarse, fine] = errors(whole);
                check(name, coarse, fine, solver.order().min(2) as f64);
                let [coarse, fine] = errors(Run { exact_start: true, ..whole });
                check(name, coarse, fine, solver.order() as f64);
            }
            // Up to t = 1 the error has a logarithmic factor.
            "dpm2" => {
                let [coarse, fine] = errors(Run { until: 0.9, ..whole });
                check(name, coarse, fine, 2.0);
                let [coarse, fine] = [400.0, 800.0].map(|n: f64| (n.ln() / (n * n)).recip());
                let [at_coarse, at_fine] = errors(whole);
                assert!(at_coarse * coarse < 1.0 && at_fine * fine < 1.0);
            }
            "euler-maruyama" | "euler-maruyama-repa" => {
                let stochastic =
                    if name == "euler-maruyama" { EulerMaruyama::ddt() } else { EulerMaruyama::repa() };
                let errors = [128, 256].map(|n| (final_variance(stochastic, n) - 1.0).abs());
                check(name, errors[0], errors[1], 1.0);
            }
            // Its error goes as its tolerance.
            "dopri5" => {
                let slope = slope(&adaptive_errors(6.0));
                assert!((slope - 1.0).abs() < 0.1, "the error goes as the tolerance to the {slope}");
            }
            other => panic!("{other} has no order in this test"),
        }
    }
}

#[test]
fn the_published_adams_has_order_two_with_any_number_of_velocities() {
    let [second, fourth] = [2, 4].map(|order| {
        error(&AdamsBashforth::new(order).unwrap(), 100, Run { exact_start: false, until: 1.0 })
    });
    assert!(fourth < 3.0 * second && second < 100.0 * fourth, "{second:e} {fourth:e}");
}

/// Tolerance, error and evaluations of runs with one step of a grid.
fn adaptive_errors(rate: f64) -> Vec<(f64, f64, usize)> {
    let step = TimeGrid::new(1, None, 1.0).unwrap().step(0).unwrap();
    let run = |tolerance: f64| {
        let mut calls = 0;
        let mut counted = |x: &Tensor, at: Evaluation| {
            calls += 1;
            velocity_at(rate, x, at.t)
        };
        let start = one(solution_at(rate, 0.0));
        let solver = Dopri5::new(tolerance).unwrap();
        let x = solver.step(&mut counted, &start, step, &mut History::default()).unwrap();
        (tolerance, (number(&x) - solution_at(rate, 1.0)).abs(), calls)
    };
    (6..=22).map(|half_decades| run(10f64.powf(f64::from(-half_decades) / 2.0))).collect()
}

/// Least-squares slope of the logarithm of the error against that of the tolerance.
fn slope(runs: &[(f64, f64, usize)]) -> f64 {
    let mean = |of: &dyn Fn(&(f64, f64, usize)) -> f64| runs.iter().map(of).sum::<f64>() / runs.len() as f64;
    let (x, y) = (mean(&|it| it.0.ln()), mean(&|it| it.1.ln()));
    mean(&|it| (it.0.ln() - x) * (it.1.ln() - y)) / mean(&|it| (it.0.ln() - x).powi(2))
}

#[test]
fn the_adaptive_pair_keeps_its_tolerance_with_calls_that_grow_slowly() {
    let runs = adaptive_errors(6.0);
    for (tolerance, error, _) in &runs {
        assert!(error < &(5.0 * tolerance), "{tolerance:e} gives {error:e}");
    }
    assert!(runs.windows(2).all(|pair| pair[0].2 <= pair[1].2), "{runs:?}");
    // The error goes as the fifth power of the length: eight orders of tolerance cost 40 times the calls.
    let (first, last) = (runs[0].2 as f64, runs[runs.len() - 1].2 as f64);
    assert!(last < 45.0 * first, "{first} and {last} calls");
}

#[test]
fn dpm_starts_as_euler_does() {
    let step = TimeGrid::new(5, None, 1.0).unwrap().step(0).unwrap();
    let from = |solver: &dyn Solver| {
        number(&solver.step(&mut velocity, &one(2.0), step, &mut History::default()).unwrap())
    };
    assert!((from(&Dpm2) - from(&AdamsBashforth::new(1).unwrap())).abs() < 1e-14);
}

/// Velocity `cos(3 t) - x_t` with the class and `-x_t` without; records its evaluations.
struct Recorder;

impl ClassConditional for Recorder {
    type State = Vec<(Evaluation, CfgBatch)>;

    fn velocities(
        &self,
        x_t: &Tensor,
        at: Evaluation,
        batch: CfgBatch,
        asked: &mut Self::State,
    ) -> Result<Tensor> {
        asked.push((at, batch));
        let class = x_t.affine(-1.0, (3.0 * at.t).cos())?;
        match batch {
            CfgBatch::Cond => Ok(class),
            CfgBatch::CondUncond => Tensor::cat(&[class, x_t.neg()?], 0),
        }
    }
}

#[test]
fn evaluations_are_inside_their_step_and_guided_as_it_is() {
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
        for (at, batch) in asked {
            let step = grid.step(at.step).unwrap();
            assert_eq!(at.step_t, step.t, "{name}");
            assert!((step.t..=step.t_next).contains(&at.t), "{name} {at:?}");
            assert_eq!(batch == CfgBatch::CondUncond, guided.guidance.is_guided(step.t), "{name} {at:?}");
        }
    }
}

#[test]
fn evaluations_are_as_many_as_the_method_needs() {
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

#[test]
fn noise_of_a_pytorch_generator() {
    ddt_parity::check("torch_randn").unwrap();
}
