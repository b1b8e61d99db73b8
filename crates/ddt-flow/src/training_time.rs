//! How training draws its times.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::noise::CounterNoise;
use crate::time_grid::{check_timeshift, shift_time};

/// The distribution of training times.
///
/// DDT and the improved baselines train with [`LogitNormal`](Self::LogitNormal), the naive ones with
/// [`Uniform`](Self::Uniform). Written as `uniform` and `lognorm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeSampling {
    /// Every time alike.
    #[serde(rename = "uniform")]
    Uniform,
    /// The sigmoid of a standard normal: mostly the middle, seldom the ends.
    #[serde(rename = "lognorm")]
    LogitNormal,
}

impl TimeSampling {
    /// The time in [0, 1) of one sample: a function of what `noise` is addressed by, nothing else.
    ///
    /// `timeshift` respaces it as [`shift_time`] does; the published training does not shift.
    ///
    /// # Errors
    ///
    /// [`FlowError::Timeshift`](crate::FlowError::Timeshift) unless `timeshift` is finite and above 0.
    pub fn draw(self, noise: &CounterNoise, timeshift: Option<f64>) -> Result<f64> {
        let timeshift = timeshift.unwrap_or(1.0);
        check_timeshift(timeshift)?;
        let t = match self {
            TimeSampling::Uniform => noise.first_uniform(),
            TimeSampling::LogitNormal => logit_normal_time(noise.first_normal()),
        };
        Ok(shift_time(t, timeshift))
    }
}

/// The time that belongs to a standard normal number, the same on every platform.
///
/// ```text
/// t = sigmoid(n) = 1 / (1 + exp(-n))
/// ```
pub fn logit_normal_time(normal: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-normal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FlowError;
    use crate::noise::Purpose;

    fn draws(sampling: TimeSampling, timeshift: Option<f64>) -> Vec<f64> {
        let draw = |sample| sampling.draw(&CounterNoise::new(3, Purpose::TrainTime, 0, sample), timeshift);
        (0..20_000).map(|sample| draw(sample).unwrap()).collect()
    }

    /// Shares of the times below 1/4, 1/2 and 3/4.
    #[track_caller]
    fn check(sampling: TimeSampling, timeshift: Option<f64>, expected: [f64; 3]) {
        let times = draws(sampling, timeshift);
        assert!(times.iter().all(|t| (0.0..1.0).contains(t)));
        for (bound, want) in [0.25, 0.5, 0.75].into_iter().zip(expected) {
            let got = times.iter().filter(|&&t| t < bound).count() as f64 / times.len() as f64;
            assert!((got - want).abs() < 0.012, "{sampling:?}: share {got} below {bound}, not {want}");
        }
    }

    #[test]
    fn distributions() {
        check(TimeSampling::Uniform, None, [0.25, 0.5, 0.75]);
        // Normal distribution function at -ln 3, 0 and ln 3.
        check(TimeSampling::LogitNormal, None, [0.136, 0.5, 0.864]);
        // u / (u + 2 (1 - u)) < b where u < 2b / (1 + b).
        check(TimeSampling::Uniform, Some(2.0), [0.4, 2.0 / 3.0, 6.0 / 7.0]);
    }

    #[test]
    fn sigmoid_values() {
        assert_eq!(logit_normal_time(0.0), 0.5);
        assert!((logit_normal_time(3f64.ln()) - 0.75).abs() < 1e-15);
        assert_eq!((logit_normal_time(-1e9), logit_normal_time(1e9)), (0.0, 1.0));
    }

    #[test]
    fn bad_shift_is_an_error_and_names_are_the_published_ones() {
        let noise = CounterNoise::new(0, Purpose::TrainTime, 0, 0);
        let err = TimeSampling::Uniform.draw(&noise, Some(0.0));
        assert!(matches!(err, Err(FlowError::Timeshift { got: 0.0 })));
        assert_eq!(serde_json::to_string(&TimeSampling::LogitNormal).unwrap(), "\"lognorm\"");
    }
}
