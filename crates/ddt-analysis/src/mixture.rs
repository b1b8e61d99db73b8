//! Data whose flow is known in closed form.

use crate::schedule::Schedule;

/// One Gaussian of a [`Mixture`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Component {
    /// Its weight, positive; those of a mixture need not add up to 1.
    pub weight: f64,
    /// Its mean.
    pub mean: f64,
    /// Its standard deviation.
    pub std: f64,
}

/// Data on a line that are a mixture of Gaussians: noisy data, score and velocity in closed form.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixture {
    /// The Gaussians.
    pub components: Vec<Component>,
}

impl Mixture {
    /// The score of the noisy data at time `t`, `d log p(x_t) / dx_t`.
    pub fn score(&self, schedule: Schedule, x: f64, t: f64) -> f64 {
        self.expectation(schedule, x, t, |mean, variance, _| (mean - x) / variance)
    }

    /// The velocity that flow matching regresses on, in expectation: the mean of the target among all pairs
    /// of data and noise that meet at `x`.
    ///
    /// ```text
    /// v(x, t) = E[alpha' data + sigma' noise | x_t = x]
    /// ```
    ///
    /// Eqs. (13) and (14) of arXiv:2504.05741; made without the score.
    pub fn velocity(&self, schedule: Schedule, x: f64, t: f64) -> f64 {
        let (alpha, sigma) = (schedule.alpha(t), schedule.sigma(t));
        self.expectation(schedule, x, t, |mean, variance, it| {
            let share = (x - mean) / variance;
            let data = it.mean + alpha * it.std * it.std * share;
            let noise = sigma * share;
            schedule.d_alpha(t) * data + schedule.d_sigma(t) * noise
        })
    }

    /// The mean of `of(mean, variance, component)` of the noisy components, weighed by how likely each is
    /// at `x`.
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
