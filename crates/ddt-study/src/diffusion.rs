//! The diffusion behind a flow, and data for which both have a closed form.

use std::f64::consts::FRAC_PI_2;

/// A path `x_t = alpha_t data + sigma_t noise` from noise at `t = 0` to data at `t = 1`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// `alpha = t`, `sigma = 1 - t`: flow matching's straight path (eq. 34).
    Linear,
    /// `alpha = sin(pi t / 2)`, `sigma = cos(pi t / 2)`.
    Cosine,
    /// The variance-preserving diffusion with a linear rate of noise, in reversed time `u = 1 - t`:
    ///
    /// ```text
    /// alpha = exp(-(u^2 (max - min) / 4 + u min / 2)),   sigma = sqrt(1 - alpha^2)
    /// ```
    VariancePreserving {
        /// Rate of noise at data; 0.1 is usual.
        min: f64,
        /// Rate of noise at noise; 20 is usual.
        max: f64,
    },
}

impl Schedule {
    /// Weight of the data, `alpha_t`.
    pub fn alpha(self, t: f64) -> f64 {
        match self {
            Self::Linear => t,
            Self::Cosine => (FRAC_PI_2 * t).sin(),
            Self::VariancePreserving { min, max } => {
                let u = 1.0 - t;
                (-(u * u * (max - min) / 4.0 + u * min / 2.0)).exp()
            }
        }
    }

    /// Weight of the noise, `sigma_t`.
    pub fn sigma(self, t: f64) -> f64 {
        match self {
            Self::Linear => 1.0 - t,
            Self::Cosine => (FRAC_PI_2 * t).cos(),
            Self::VariancePreserving { .. } => (1.0 - self.alpha(t).powi(2)).max(0.0).sqrt(),
        }
    }

    /// Time derivative of [`alpha`](Self::alpha).
    pub fn d_alpha(self, t: f64) -> f64 {
        match self {
            Self::Linear => 1.0,
            Self::Cosine => FRAC_PI_2 * (FRAC_PI_2 * t).cos(),
            Self::VariancePreserving { min, max } => {
                self.alpha(t) * ((1.0 - t) * (max - min) / 2.0 + min / 2.0)
            }
        }
    }

    /// Time derivative of [`sigma`](Self::sigma); infinite at data for a variance-preserving path.
    pub fn d_sigma(self, t: f64) -> f64 {
        match self {
            Self::Linear => -1.0,
            Self::Cosine => -FRAC_PI_2 * (FRAC_PI_2 * t).sin(),
            Self::VariancePreserving { .. } => -self.alpha(t) * self.d_alpha(t) / self.sigma(t),
        }
    }

    /// Drift factor `f` of the diffusion `dx = f x dt + g dw`.
    ///
    /// ```text
    /// f = alpha' / alpha
    /// ```
    ///
    /// Appendix C of arXiv:2504.05741.
    pub fn drift(self, t: f64) -> f64 {
        self.d_alpha(t) / self.alpha(t)
    }

    /// Half the square of the diffusion's `g`; negative, since here time runs from noise to data.
    ///
    /// ```text
    /// g^2 / 2 = sigma sigma' - f sigma^2
    /// ```
    ///
    /// Appendix C of arXiv:2504.05741; of its eqs. (21) and (33), which disagree about the square on `g`,
    /// this is the form that is consistent.
    pub fn half_diffusion(self, t: f64) -> f64 {
        let sigma = self.sigma(t);
        sigma * self.d_sigma(t) - self.drift(t) * sigma * sigma
    }

    /// Velocity of the diffusion's probability-flow equation, which is that of flow matching.
    ///
    /// ```text
    /// v = f x - g^2/2 score
    /// ```
    ///
    /// Eqs. (9) to (33) of arXiv:2504.05741.
    pub fn flow_velocity(self, x: f64, score: f64, t: f64) -> f64 {
        self.drift(t) * x - self.half_diffusion(t) * score
    }

    /// Score from a velocity.
    ///
    /// ```text
    /// s = (alpha/alpha' v - x) / (sigma^2 - alpha/alpha' sigma' sigma)
    /// ```
    pub fn score(self, x: f64, velocity: f64, t: f64) -> f64 {
        let (ratio, sigma) = (self.alpha(t) / self.d_alpha(t), self.sigma(t));
        (ratio * velocity - x) / (sigma * sigma - ratio * self.d_sigma(t) * sigma)
    }
}

/// One Gaussian of a [`Mixture`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Component {
    /// Its weight, positive; the weights of a mixture need not add up to 1.
    pub weight: f64,
    /// Its mean.
    pub mean: f64,
    /// Its standard deviation.
    pub std: f64,
}

/// One-dimensional data from a mixture of Gaussians, whose score and velocity have a closed form.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixture {
    /// The Gaussians.
    pub components: Vec<Component>,
}

impl Mixture {
    /// Score of the noisy data at time `t`, `d log p(x_t) / dx_t`.
    pub fn score(&self, schedule: Schedule, x: f64, t: f64) -> f64 {
        self.expectation(schedule, x, t, |mean, variance, _| (mean - x) / variance)
    }

    /// Optimal velocity of flow matching: the mean target over all pairs of data and noise that meet at `x`.
    ///
    /// ```text
    /// v(x, t) = E[alpha' data + sigma' noise | x_t = x]
    /// ```
    ///
    /// Eqs. (13) and (14) of arXiv:2504.05741; computed without the score.
    pub fn velocity(&self, schedule: Schedule, x: f64, t: f64) -> f64 {
        let (alpha, sigma) = (schedule.alpha(t), schedule.sigma(t));
        self.expectation(schedule, x, t, |mean, variance, it| {
            let shift = (x - mean) / variance;
            let data = it.mean + alpha * it.std * it.std * shift;
            let noise = sigma * shift;
            schedule.d_alpha(t) * data + schedule.d_sigma(t) * noise
        })
    }

    /// Mean of `of(mean, variance, component)` over the noisy components, weighted by their likelihoods at `x`.
    fn expectation(
        &self,
        schedule: Schedule,
        x: f64,
        t: f64,
        of: impl Fn(f64, f64, &Component) -> f64,
    ) -> f64 {
        let (alpha, sigma) = (schedule.alpha(t), schedule.sigma(t));
        let noisy = |it: &Component| (alpha * it.mean, (alpha * it.std).powi(2) + sigma * sigma);
        let log_weight = |it: &Component| {
            let (mean, variance) = noisy(it);
            it.weight.ln() - (x - mean).powi(2) / (2.0 * variance) - variance.ln() / 2.0
        };
        let largest = self.components.iter().map(log_weight).fold(f64::NEG_INFINITY, f64::max);
        let (mut sum, mut total) = (0.0, 0.0);
        for it in &self.components {
            let weight = (log_weight(it) - largest).exp();
            let (mean, variance) = noisy(it);
            sum += weight * of(mean, variance, it);
            total += weight;
        }
        sum / total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Schedule; 3] =
        [Schedule::Linear, Schedule::Cosine, Schedule::VariancePreserving { min: 0.1, max: 20.0 }];

    #[test]
    fn derivatives_are_finite_differences() {
        let h = 1e-6;
        for schedule in ALL {
            for t in [0.1, 0.5, 0.9] {
                let slope = |f: &dyn Fn(f64) -> f64| (f(t + h) - f(t - h)) / (2.0 * h);
                let alpha = slope(&|t| schedule.alpha(t)) - schedule.d_alpha(t);
                let sigma = slope(&|t| schedule.sigma(t)) - schedule.d_sigma(t);
                assert!(alpha.abs() < 1e-7 && sigma.abs() < 1e-7, "{schedule:?} {t}: {alpha:e} {sigma:e}");
            }
        }
    }

    #[test]
    fn ends_are_data_and_nearly_noise() {
        for schedule in ALL {
            assert!((schedule.alpha(1.0) - 1.0).abs() < 1e-12 && schedule.sigma(1.0).abs() < 1e-7);
            assert!(schedule.alpha(0.0) < 0.01 && (schedule.sigma(0.0) - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn score_and_velocity_undo_each_other_and_g_is_that_of_the_diffusion() {
        for schedule in ALL {
            for t in [0.2, 0.5, 0.8] {
                let (x, score) = (0.7, -1.3);
                let velocity = schedule.flow_velocity(x, score, t);
                assert!((schedule.score(x, velocity, t) - score).abs() < 1e-9, "{schedule:?} {t}");
                assert!(schedule.half_diffusion(t) < 0.0);
            }
        }
        // The rate of noise that the variance-preserving path was made of is g^2, against time.
        let vp = Schedule::VariancePreserving { min: 0.1, max: 20.0 };
        for t in [0.2, 0.5, 0.8] {
            let rate = 0.1 + (1.0 - t) * 19.9;
            assert!((-2.0 * vp.half_diffusion(t) - rate).abs() < 1e-9);
        }
        // The linear path: v = x/t + (1 - t)/t score.
        let v = Schedule::Linear.flow_velocity(0.7, -1.3, 0.4);
        assert!((v - (0.7 / 0.4 - 1.3 * 0.6 / 0.4)).abs() < 1e-12);
    }

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
            for schedule in ALL {
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
            for schedule in ALL {
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
        for schedule in ALL {
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
                let fraction: f64 =
                    data.components.iter().map(|it| it.weight * below(x, it.mean, it.std)).sum::<f64>()
                        / total;
                let expected = below(start, 0.0, 1.0);
                assert!((fraction - expected).abs() < 0.01, "{schedule:?} {start}: {fraction} {expected}");
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
}
