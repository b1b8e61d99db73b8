//! Sharing, and skipping the unconditional half, against the published algorithm written out plainly.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use ddt_flow::{
    AdamsBashforth, EULER, Evaluation, FlowError, Guidance, History, SOLVER_NAMES, TimeGrid, solver_by_name,
};
use ddt_model::{Ddt, ModelError, SampleOptions, VelocityNetwork, sample};
use ddt_sharing::{ForecastOrder, SharingPlan};

use crate::{normal, perturbed, relative_rms, sizes};

/// With and without class encoded at every recompute step and decoded at every step; guidance by selecting the scale.
/// Between recomputes `z_t` is the Lagrange polynomial through the last ones.
fn published(network: &Ddt, noise: &Tensor, labels: &[u32], options: &SampleOptions) -> Tensor {
    let none = network.config().sizes.num_classes as u32;
    let both: Vec<u32> = labels.iter().copied().chain(labels.iter().map(|_| none)).collect();
    let both = Tensor::new(both.as_slice(), &Device::Cpu).unwrap();
    let rows = labels.len();
    let (mut x, mut known, mut history) =
        (noise.clone(), Vec::<(usize, f64, Tensor)>::new(), History::default());
    let points = options.plan.map_or(1, |it| it.order().points());
    for step in options.grid.steps() {
        let velocity = &mut |x: &Tensor, at: Evaluation| {
            let xs = Tensor::cat(&[x, x], 0)?;
            if options.plan.is_none_or(|it| it.is_recompute(at.step)) {
                let t = Tensor::full(at.t as f32, 2 * rows, &Device::Cpu)?;
                known.retain(|(step, ..)| *step != at.step);
                known.push((at.step, at.t, network.encoder().forward(&xs, &t, &both)?));
            }
            let last = known.len().saturating_sub(points);
            let last = if known.last().unwrap().0 == at.step { known.len() - 1 } else { last };
            let mut z_t = known[last].2.zeros_like()?;
            for (_, t_j, z_j) in &known[last..] {
                let others = known[last..].iter().filter(|(_, t_l, _)| t_l != t_j);
                let weight: f64 = others.map(|(_, t_l, _)| (at.t - t_l) / (t_j - t_l)).product();
                z_t = (z_t + (z_j * weight)?)?;
            }
            let v = network.decoder().forward(&xs, &z_t)?;
            let (class, none) = (v.narrow(0, 0, rows)?, v.narrow(0, rows, rows)?);
            let (lo, hi) = options.guidance.interval();
            let scale = if lo < at.step_t && at.step_t < hi { options.guidance.scale() } else { 1.0 };
            Ok((&none + ((class - &none)? * scale)?)?.detach())
        };
        x = options.solver.step(velocity, &x, step, &mut history).unwrap();
    }
    x
}

fn go_on(_: &ddt_flow::StepReport<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn equals_the_published_algorithm() {
    let (network, _) = perturbed(&sizes());
    let frozen = network.clone().freeze().unwrap();
    let (noise, labels) = (normal(3, &[2, 2, 4, 4]), [1, 4]);
    let plans = [vec![0], vec![0, 1, 5, 7], vec![0, 2, 4, 6, 8], (0..10).collect()];
    let plans = plans.into_iter().flat_map(|steps| {
        let plan = SharingPlan::new(steps, 10).unwrap();
        [ForecastOrder::Reuse, ForecastOrder::Linear, ForecastOrder::Quadratic]
            .map(|order| Some(plan.clone().with_order(order)))
    });
    for plan in plans.chain([None]) {
        for interval in [(0.3, 1.0), (0.0, 1.0), (0.2, 0.5), (0.55, 0.6)] {
            // All solvers where both matter, few elsewhere.
            let all = interval == (0.2, 0.5) && plan.as_ref().is_none_or(|it| it.num_recompute() == 4);
            let names: &[&str] = if all { SOLVER_NAMES } else { &["euler", "adams4"] };
            for solver in names.iter().map(|it| solver_by_name(it).unwrap()) {
                let options = SampleOptions {
                    grid: TimeGrid::new(10, Some(0.04), 1.5).unwrap(),
                    solver: solver.as_ref(),
                    guidance: Guidance::new(2.5, interval).unwrap(),
                    plan: plan.as_ref(),
                };
                let sampled = sample(&frozen, &noise, &labels, &options, &mut go_on).unwrap();
                let error = relative_rms(&sampled.latents, &published(&network, &noise, &labels, &options));
                assert!(error < 1e-5, "{} {plan:?} {interval:?}: {error:e}", solver.name());
                let encodes = plan.as_ref().map_or(10, SharingPlan::num_recompute);
                // A step of several evaluations encodes at each of them, or at none.
                let each = match solver.name() {
                    "heun" => 2,
                    "dopri5" => continue,
                    _ => 1,
                };
                assert_eq!((sampled.calls.encoder, sampled.calls.decoder), (each * encodes, each * 10));
            }
        }
    }
}

#[test]
fn recomputing_everywhere_changes_nothing_and_images_do_not_see_each_other() {
    let (network, _) = perturbed(&sizes());
    let (noise, labels) = (normal(3, &[3, 2, 4, 4]), [1, 4, 5]);
    let every = SharingPlan::every_step(8).unwrap();
    let solver = AdamsBashforth::new(2).unwrap();
    let run = |noise: &Tensor, labels: &[u32], plan| {
        let options = SampleOptions {
            grid: TimeGrid::new(8, None, 1.0).unwrap(),
            solver: &solver,
            guidance: Guidance::new(3.0, (0.1, 0.9)).unwrap(),
            plan,
        };
        sample(&network, noise, labels, &options, &mut go_on).unwrap().latents
    };
    let whole = run(&noise, &labels, None);
    assert_eq!(relative_rms(&run(&noise, &labels, Some(&every)), &whole), 0.0);
    let second = run(&noise.narrow(0, 1, 1).unwrap(), &labels[1..2], None);
    assert!(relative_rms(&second, &whole.narrow(0, 1, 1).unwrap()) < 1e-6);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (network, _) = perturbed(&sizes());
    let options = |plan| SampleOptions {
        grid: TimeGrid::new(4, None, 1.0).unwrap(),
        solver: &EULER,
        guidance: Guidance::new(2.0, (0.3, 1.0)).unwrap(),
        plan,
    };
    let noise = normal(0, &[1, 2, 4, 4]);
    let run = |noise: &Tensor, labels: &[u32]| sample(&network, noise, labels, &options(None), &mut go_on);
    let message = |noise: &Tensor, labels: &[u32]| match run(noise, labels) {
        Err(ModelError::Input(message)) => message,
        other => panic!("{other:?}"),
    };
    assert!(
        message(&noise, &[6]).starts_with("label 6 of image 0 is out of range, expected a class in 0..5")
    );
    for (noise, labels) in [
        (normal(0, &[1, 2, 4, 5]), vec![0]),
        (normal(0, &[1, 3, 4, 4]), vec![0]),
        (normal(0, &[2, 4, 4]), vec![0]),
        (noise.clone(), vec![0, 1]),
        (noise.clone(), vec![]),
    ] {
        assert!(message(&noise, &labels).contains("positive multiples of 2"));
    }
    let bad = (&noise * f64::INFINITY).unwrap();
    assert!(matches!(
        run(&bad, &[0]),
        Err(ModelError::Flow(FlowError::NonFinite { step: 0, sample: 0, .. }))
    ));

    let plan = SharingPlan::every_step(5).unwrap();
    let refused = sample(&network, &noise, &[0], &options(Some(&plan)), &mut go_on);
    assert!(matches!(refused, Err(ModelError::Plan(_))));

    let stop = &mut |_: &ddt_flow::StepReport<'_>| ControlFlow::Break(());
    let stopped = sample(&network, &noise, &[0], &options(None), stop);
    assert!(matches!(stopped, Err(ModelError::Flow(FlowError::Cancelled { .. }))));
}
