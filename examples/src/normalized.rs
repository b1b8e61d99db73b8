//! An autoencoder whose latents are scaled channel by channel.

use candle_core::{DType, Device, Result, Tensor, bail};
use ddt_adapters::{Decode, LatentSpace};
use ddt_model::LatentInfo;

/// Shows a network latents of mean 0 and standard deviation 1, whatever the autoencoder's own are.
///
/// ```text
/// latents = (z - mean) / std,   z = latents std + mean        for each channel
/// ```
pub struct Normalized {
    inner: Box<dyn Decode>,
    /// (1, C, 1, 1) each.
    mean: Tensor,
    std: Tensor,
}

impl Normalized {
    /// Wraps `inner` with the statistics of `info`.
    ///
    /// # Errors
    ///
    /// Unless there is one mean and one positive standard deviation for each channel of `inner`.
    pub fn new(inner: Box<dyn Decode>, info: &LatentInfo, device: &Device) -> Result<Self> {
        let channels = inner.latent_channels();
        let per_channel = |what: &str, values: &[f64]| match values.len() {
            n if n == channels => Tensor::from_slice(values, (1, n, 1, 1), device)?.to_dtype(DType::F32),
            n => {
                bail!("expected the {what} of each of the autoencoder's {channels} latent channels, got {n}")
            }
        };
        if let Some(std) = info.std.iter().find(|it| !(it.is_finite() && **it > 0.0)) {
            bail!("expected positive standard deviations of the latents, got {std}");
        }
        let (mean, std) = (per_channel("mean", &info.mean)?, per_channel("standard deviation", &info.std)?);
        Ok(Self { inner, mean, std })
    }
}

impl LatentSpace for Normalized {
    fn latent_channels(&self) -> usize {
        self.inner.latent_channels()
    }

    fn downscale(&self) -> usize {
        self.inner.downscale()
    }
}

impl Decode for Normalized {
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.inner.decode(&latents.broadcast_mul(&self.std)?.broadcast_add(&self.mean)?)
    }
}

#[cfg(test)]
mod tests {
    use ddt_adapters::PixelSpace;

    use super::*;

    fn wrap(mean: &[f64], std: &[f64]) -> Result<Normalized> {
        let (mean, std) = (mean.to_vec(), std.to_vec());
        let info = LatentInfo { autoencoder: "pixels".to_owned(), height: 1, width: 1, mean, std };
        Normalized::new(Box::new(PixelSpace), &info, &Device::Cpu)
    }

    #[test]
    fn scales_each_channel_back() {
        let coder = wrap(&[1.0, 0.0, -1.0], &[2.0, 1.0, 0.5]).unwrap();
        let latents = Tensor::new(&[[[[1f32]], [[4.0]], [[12.0]]]], &Device::Cpu).unwrap();
        let back = coder.decode(&latents).unwrap();
        assert_eq!(back.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [3.0, 4.0, 5.0]);
        assert_eq!((coder.latent_channels(), coder.downscale()), (3, 1));
    }

    #[test]
    fn statistics_of_another_latent_are_refused() {
        assert!(wrap(&[0.0; 2], &[1.0; 3]).is_err());
        assert!(wrap(&[0.0; 3], &[1.0; 4]).is_err());
        assert!(wrap(&[0.0; 3], &[1.0, 0.0, 1.0]).is_err());
    }
}
