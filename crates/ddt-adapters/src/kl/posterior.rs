//! What the encoder says about an image's latents.

use candle_core::{Result, Tensor, bail};

/// A normal distribution over unscaled latents, independent in every element.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Mean, `(B, C, H, W)`.
    pub mean: Tensor,
    /// Logarithm of the variance, `(B, C, H, W)`, in `[-30, 20]`.
    pub logvar: Tensor,
}

impl Posterior {
    /// Splits `(B, 2 C, H, W)` into mean and log-variance.
    pub(super) fn from_moments(moments: &Tensor) -> Result<Self> {
        let halves = moments.chunk(2, 1)?;
        let [mean, logvar] = halves.as_slice() else {
            bail!("expected mean and log-variance (B, 2 C, H, W), got {:?}", moments.shape());
        };
        Ok(Self { mean: mean.contiguous()?, logvar: logvar.clamp(-30f32, 20f32)? })
    }

    /// A draw: `mean + exp(logvar / 2) * noise`, with `noise` standard normal `(B, C, H, W)`.
    ///
    /// # Errors
    ///
    /// Noise of another shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        if noise.dims() != self.mean.dims() {
            bail!("expected noise {:?}, got {:?}", self.mean.shape(), noise.shape());
        }
        let std = (&self.logvar / 2.0)?.exp()?;
        &self.mean + (std * noise.to_dtype(self.mean.dtype())?)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, rel_rms};
    use candle_core::Device;

    #[test]
    fn a_draw_is_mean_plus_std_times_noise() {
        let moments = Tensor::new(&[[[[3f32]], [[-1.0]], [[2.0]], [[99.0]]]], &Device::Cpu).unwrap();
        let posterior = Posterior::from_moments(&moments).unwrap();
        assert_eq!(posterior.logvar.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [2.0, 20.0]);
        let noise = Tensor::new(&[[[[0.5f32]], [[0.0]]]], &Device::Cpu).unwrap();
        let want = Tensor::new(&[3.0 + 0.5 * 1f32.exp(), -1.0], &Device::Cpu).unwrap();
        assert!(rel_rms(&posterior.sample(&noise).unwrap(), &want) < 1e-6);
        assert!(posterior.sample(&random(1, (1, 2, 1, 2))).is_err());
    }
}
