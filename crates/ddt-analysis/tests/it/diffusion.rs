//! Appendix C as numbers: flow matching's velocity is that of a diffusion's probability flow.

use ddt_analysis::{Component, Mixture, Schedule};
use proptest::prelude::*;

const SCHEDULES: [Schedule; 3] =
    [Schedule::Linear, Schedule::Cosine, Schedule::VariancePreserving { min: 0.1, max: 20.0 }];

fn mixture() -> Mixture {
    let components = [(0.5, -2.0, 0.3), (1.0, 0.5, 0.6), (0.3, 3.0, 0.2)]
        .map(|(weight, mean, std)| Component { weight, mean, std });
    Mixture { components: components.to_vec() }
}

proptest! {
    /// Two independent ways to one velocity: the mean of the training target, and drift less diffusion
    /// times score.
    #[test]
    fn the_regression_target_is_the_probability_flow(x in -4.0..4.0f64, t in 0.02..0.98f64) {
        let data = mixture();
        for schedule in SCHEDULES {
            let regressed = data.velocity(schedule, x, t);
            let diffused = schedule.flow_velocity(x, data.score(schedule, x, t), t);
            prop_assert!(
                (regressed - diffused).abs() < 1e-8 * (1.0 + regressed.abs() + schedule.drift(t) * x.abs()),
                "{schedule:?}: {regressed} and {diffused}"
            );
            let score = schedule.score(x, regressed, t);
            prop_assert!((score - data.score(schedule, x, t)).abs() < 1e-6 * (1.0 + score.abs()));
        }
    }

    /// The score is the slope of the density that the components add up to.
    #[test]
    fn the_score_is_the_slope_of_the_log_density(x in -4.0..4.0f64, t in 0.05..0.95f64) {
        let data = mixture();
        for schedule in SCHEDULES {
            let log_density = |x: f64| {
                let (alpha, sigma) = (schedule.alpha(t), schedule.sigma(t));
                let density = |it: &Component| {
                    let variance = (alpha * it.std).powi(2) + sigma * sigma;
                    it.weight * (-(x - alpha * it.mean).powi(2) / (2.0 * variance)).exp() / variance.sqrt()
                };
                data.components.iter().map(density).sum::<f64>().ln()
            };
            let slope = (log_density(x + 1e-5) - log_density(x - 1e-5)) / 2e-5;
            prop_assert!((slope - data.score(schedule, x, t)).abs() < 1e-4 * (1.0 + slope.abs()));
        }
    }
}

/// Carried by the velocity, the quantiles of the noise become the quantiles of the data, on every path:
/// different diffusions, one distribution.
#[test]
fn every_path_ends_in_the_data() {
    let data = mixture();
    let total: f64 = data.components.iter().map(|it| it.weight).sum();
    let below = |x: f64, mean: f64, std: f64| 0.5 * (1.0 + erf((x - mean) / (std * 2f64.sqrt())));
    for schedule in SCHEDULES {
        for start in [-1.5, -0.4, 0.3, 1.2] {
            // Not quite to the end, where a variance-preserving path is steep.
            let (mut x, n, begin, end) = (start, 20_000, 0.0f64, 0.9995);
            if let Schedule::VariancePreserving { .. } = schedule {
                // Its noise end still holds a trace of the data, below a hundredth.
                assert!(schedule.alpha(begin) < 0.01);
            }
            let dt = (end - begin) / f64::from(n);
            for i in 0..n {
                let t = begin + f64::from(i) * dt;
                let middle = x + 0.5 * dt * data.velocity(schedule, x, t);
                x += dt * data.velocity(schedule, middle, t + 0.5 * dt);
            }
            let share: f64 =
                data.components.iter().map(|it| it.weight * below(x, it.mean, it.std)).sum::<f64>() / total;
            let expected = below(start, 0.0, 1.0);
            assert!((share - expected).abs() < 0.01, "{schedule:?} {start}: {share} {expected}");
        }
    }
}

/// The error function by its series, good to 1e-12 for the small arguments here.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    2.0 / std::f64::consts::PI.sqrt() * sum
}
