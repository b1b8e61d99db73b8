//! The path between noise and data: training times, noisy samples and regression target.

use candle_core::{DType, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::noise::CounterNoise;

/// The straight path from noise at `t = 0` to data at `t = 1`.
///
/// ```text
/// x_t = alpha_t data + sigma_t noise,   alpha_t = t,   sigma_t = 1 - t
/// ```
///
/// Eq. (34) of arXiv:2504.05741.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearPath;

impl LinearPath {
    /// Weight of the data in `x_t`: `alpha_t = t`.
    pub fn alpha_t(self, t: f64) -> f64 {
        t
    }

    /// Weight of the noise in `x_t`: `sigma_t = 1 - t`.
    pub fn sigma_t(self, t: f64) -> f64 {
        1.0 - t
    }

    /// Time derivative of [`alpha_t`](Self::alpha_t): 1 everywhere.
    pub fn d_alpha_t(self, _t: f64) -> f64 {
        1.0
    }

    /// Time derivative of [`sigma_t`](Self::sigma_t): -1 everywhere.
    pub fn d_sigma_t(self, _t: f64) -> f64 {
        -1.0
    }

    /// Noisy data, each sample at its own time.
    ///
    /// ```text
    /// x_t = t data + (1 - t) noise
    /// ```
    ///
    /// Eq. (34) of arXiv:2504.05741. Differentiable.
    ///
    /// # Shapes
    /// `data`, `noise`: (B, ...), `t`: (B) in [0, 1] -> (B, ...) in the type of `data`; `t` is cast to it.
    ///
    /// # Errors
    /// `data` and `noise` differ in shape, or `t` is not (B).
    pub fn interpolate(self, data: &Tensor, noise: &Tensor, t: &Tensor) -> Result<Tensor> {
        if data.dims() != noise.dims() {
            bail!("expected data and noise of one shape, got {:?} and {:?}", data.dims(), noise.dims());
        }
        let Some(&batch) = data.dims().first() else {
            bail!("expected data of shape (B, ...), got a scalar");
        };
        if t.dims() != [batch] {
            bail!("expected one time per sample, t of shape ({batch}), got {:?}", t.dims());
        }
        let mut per_sample = vec![1; data.rank()];
        per_sample[0] = batch;
        let alpha = t.reshape(per_sample)?.to_dtype(data.dtype())?; // (B, 1, ...)
        let sigma = alpha.affine(-1.0, 1.0)?;
        data.broadcast_mul(&alpha)? + noise.broadcast_mul(&sigma)?
    }

    /// Velocity target of training.
    ///
    /// ```text
    /// v = d_alpha_t data + d_sigma_t noise = data - noise
    /// ```
    ///
    /// Eqs. (13) and (14) of arXiv:2504.05741.
    ///
    /// # Shapes
    /// `data`, `noise`: (B, ...) -> (B, ...)
    ///
    /// # Errors
    /// `data` and `noise` differ in shape or type.
    pub fn velocity_target(self, data: &Tensor, noise: &Tensor) -> Result<Tensor> {
        data - noise
    }

    /// Score, the gradient of `log p(x_t)`, from a velocity.
    ///
    /// ```text
    /// s = (alpha/alpha' v - x_t) / (sigma^2 - (alpha/alpha') sigma' sigma) = (t v - x_t) / (1 - t)
    /// ```
    ///
    /// # Shapes
    /// `velocity`, `x_t`: (B, ...) -> (B, ...)
    ///
    /// # Errors
    /// `t` is outside [0, 1): at `t = 1` there is no noise left, and the score does not exist.
    pub fn score(self, velocity: &Tensor, x_t: &Tensor, t: f64) -> Result<Tensor> {
        if !(0.0..1.0).contains(&t) {
            bail!("expected t in [0, 1) for the score, got {t}");
        }
        ((velocity * t)? - x_t)?.affine(1.0 / (1.0 - t), 0.0)
    }
}

/// Distribution of training times, serialised as `uniform` or `lognorm`.
///
/// DDT and the improved baselines train with [`LogitNormal`](Self::LogitNormal), the original ones with
/// [`Uniform`](Self::Uniform).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeSampling {
    /// All times equally likely.
    #[serde(rename = "uniform")]
    Uniform,
    /// Sigmoid of a standard normal number: mostly the middle, rarely the ends.
    #[serde(rename = "lognorm")]
    LogitNormal,
}

impl TimeSampling {
    /// Time in [0, 1) of one training sample, a pure function of the address of `noise`.
    pub fn draw(self, noise: &CounterNoise) -> f64 {
        match self {
            TimeSampling::Uniform => noise.first_uniform(),
            TimeSampling::LogitNormal => logit_normal_time(noise.first_normal()),
        }
    }
}

/// Logit-normal time of a standard normal number, the same bits on every platform.
///
/// ```text
/// t = sigmoid(n) = 1 / (1 + exp(-n))
/// ```
pub fn logit_normal_time(normal: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-normal))
}

/// Flow matching loss: mean squared difference of two velocities.
///
/// ```text
/// loss = mean (v_predicted - v_target)^2
/// ```
///
/// Eq. (5) of arXiv:2504.05741. Differentiable with respect to both arguments.
///
/// # Shapes
/// `predicted`, `target`: (B, ...) in any float type -> a scalar in f32, computed in f32.
///
/// # Errors
/// The shapes differ, or there are no elements.
pub fn flow_matching_loss(predicted: &Tensor, target: &Tensor) -> Result<Tensor> {
    if predicted.dims() != target.dims() || predicted.elem_count() == 0 {
        bail!(
            "expected predicted and target velocities of one non-empty shape, got {:?} and {:?}",
            predicted.dims(),
            target.dims()
        );
    }
    (predicted.to_dtype(DType::F32)? - target.to_dtype(DType::F32)?)?.sqr()?.mean_all()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::noise::Purpose;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, (2, values.len() / 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn starts_at_noise_and_ends_at_data() {
        let path = LinearPath;
        assert_eq!((path.alpha_t(0.0), path.sigma_t(0.0)), (0.0, 1.0));
        assert_eq!((path.alpha_t(1.0), path.sigma_t(1.0)), (1.0, 0.0));

        let (data, noise) = (tensor(&[1.0, 2.0, 3.0, 4.0]), tensor(&[-1.0, 5.0, 0.5, 8.0]));
        let t = Tensor::new(&[0.0f32, 1.0], &Device::Cpu).unwrap();
        let x_t = path.interpolate(&data, &noise, &t).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(x_t, [[-1.0, 5.0], [3.0, 4.0]]);
    }

    #[test]
    fn derivatives_are_finite_differences() {
        let (path, h) = (LinearPath, 1e-6);
        for t in [0.1, 0.37, 0.9] {
            let slope = |f: &dyn Fn(f64) -> f64| (f(t + h) - f(t - h)) / (2.0 * h);
            assert!((slope(&|t| path.alpha_t(t)) - path.d_alpha_t(t)).abs() < 1e-8);
            assert!((slope(&|t| path.sigma_t(t)) - path.d_sigma_t(t)).abs() < 1e-8);
        }
    }

    #[test]
    fn target_is_the_time_derivative_of_the_interpolation() {
        let (data, noise) = (tensor(&[1.0, 2.0, 3.0, 4.0]), tensor(&[-1.0, 5.0, 0.5, 8.0]));
        let at = |t: f32| {
            let t = Tensor::new(&[t, t], &Device::Cpu).unwrap();
            LinearPath.interpolate(&data, &noise, &t).unwrap()
        };
        let slope = ((at(0.75) - at(0.25)).unwrap() * 2.0).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(slope, LinearPath.velocity_target(&data, &noise).unwrap().to_vec2::<f32>().unwrap());
    }

    /// For one sample the score of N(t data, (1 - t)^2) at x_t is `-noise / (1 - t)`.
    #[test]
    fn score_of_a_single_data_point() {
        let (data, noise) = (tensor(&[1.0, 2.0, 3.0, 4.0]), tensor(&[-1.0, 5.0, 0.5, 8.0]));
        let t = 0.75;
        let times = Tensor::new(&[t as f32; 2], &Device::Cpu).unwrap();
        let x_t = LinearPath.interpolate(&data, &noise, &times).unwrap();
        let velocity = LinearPath.velocity_target(&data, &noise).unwrap();
        let score = LinearPath.score(&velocity, &x_t, t).unwrap();
        assert_eq!(score.to_vec2::<f32>().unwrap(), [[4.0, -20.0], [-2.0, -32.0]]);
        assert!(LinearPath.score(&velocity, &x_t, 1.0).is_err());
        assert!(LinearPath.score(&velocity, &x_t, f64::NAN).is_err());
    }

    #[test]
    fn wrong_shapes_are_errors() {
        let data = tensor(&[1.0, 2.0, 3.0, 4.0]);
        let t = Tensor::new(&[0.5f32, 0.5, 0.5], &Device::Cpu).unwrap();
        let err = LinearPath.interpolate(&data, &data, &t).unwrap_err().to_string();
        assert!(err.contains("(2)") && err.contains("[3]"), "{err}");
        let other = tensor(&[1.0, 2.0]);
        assert!(LinearPath.interpolate(&data, &other, &t).is_err());
        let scalar = Tensor::new(1f32, &Device::Cpu).unwrap();
        assert!(LinearPath.interpolate(&scalar, &scalar, &t).is_err());
    }

    /// Checks the fractions of the times below 1/4, 1/2 and 3/4.
    #[track_caller]
    fn check(sampling: TimeSampling, expected: [f64; 3]) {
        let draw = |sample| sampling.draw(&CounterNoise::new(3, Purpose::TrainTime, 0, sample));
        let times: Vec<f64> = (0..20_000).map(draw).collect();
        assert!(times.iter().all(|t| (0.0..1.0).contains(t)));
        for (bound, want) in [0.25, 0.5, 0.75].into_iter().zip(expected) {
            let got = times.iter().filter(|&&t| t < bound).count() as f64 / times.len() as f64;
            assert!((got - want).abs() < 0.012, "{sampling:?}: fraction {got} below {bound}, not {want}");
        }
    }

    #[test]
    fn times_follow_their_distributions() {
        check(TimeSampling::Uniform, [0.25, 0.5, 0.75]);
        // Normal distribution function at -ln 3, 0 and ln 3.
        check(TimeSampling::LogitNormal, [0.136, 0.5, 0.864]);
        assert_eq!(serde_json::to_string(&TimeSampling::LogitNormal).unwrap(), "\"lognorm\"");
    }

    #[test]
    fn sigmoid_values() {
        assert_eq!(logit_normal_time(0.0), 0.5);
        assert!((logit_normal_time(3f64.ln()) - 0.75).abs() < 1e-15);
        assert_eq!((logit_normal_time(-1e9), logit_normal_time(1e9)), (0.0, 1.0));
    }

    #[test]
    fn loss_is_the_mean_square_and_its_gradient_is_right() {
        let predicted = Var::new(&[[1f32, 2.0], [3.0, 5.0]], &Device::Cpu).unwrap();
        let target = Tensor::new(&[[0f32, 2.0], [5.0, 1.0]], &Device::Cpu).unwrap();
        let loss = flow_matching_loss(&predicted, &target).unwrap();
        assert_eq!(loss.to_scalar::<f32>().unwrap(), (1.0 + 0.0 + 4.0 + 16.0) / 4.0);
        let grads = loss.backward().unwrap();
        let grad = grads.get(&predicted).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(grad, [[0.5, 0.0], [-1.0, 2.0]]);
    }

    #[test]
    fn loss_of_half_precision_is_computed_in_f32() {
        let predicted = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
        let loss = flow_matching_loss(&predicted, &predicted.zeros_like().unwrap()).unwrap();
        assert_eq!((loss.dtype(), loss.to_scalar::<f32>().unwrap()), (DType::F32, 2.5));
    }

    #[test]
    fn loss_of_different_shapes_is_an_error() {
        let row = Tensor::zeros((1, 2), DType::F32, &Device::Cpu).unwrap();
        let flat = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
        assert!(flow_matching_loss(&row, &flat).is_err());
        let empty = Tensor::zeros((0, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(flow_matching_loss(&empty, &empty).is_err());
    }
}
