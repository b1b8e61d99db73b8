//! How data and noise are mixed, and the diffusion that goes with it.

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
    /// Share of the data, `alpha_t`.
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

    /// Share of the noise, `sigma_t`.
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

    /// The drift's factor `f` of the diffusion `dx = f x dt + g dw`.
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

    /// The velocity of the diffusion's probability-flow equation, which is that of flow matching.
    ///
    /// ```text
    /// v = f x - g^2/2 score
    /// ```
    ///
    /// Eqs. (9) to (33) of arXiv:2504.05741.
    pub fn flow_velocity(self, x: f64, score: f64, t: f64) -> f64 {
        self.drift(t) * x - self.half_diffusion(t) * score
    }

    /// The score that belongs to a velocity.
    ///
    /// ```text
    /// s = (alpha/alpha' v - x) / (sigma^2 - alpha/alpha' sigma' sigma)
    /// ```
    pub fn score(self, x: f64, velocity: f64, t: f64) -> f64 {
        let (ratio, sigma) = (self.alpha(t) / self.d_alpha(t), self.sigma(t));
        (ratio * velocity - x) / (sigma * sigma - ratio * self.d_sigma(t) * sigma)
    }
}

#[cfg(test)]
mod tests {
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
}
