//! Mean and variance of each element of the latents.

use candle_core::{DType, Device, Result, Tensor, bail};
use ddt_files::TensorSource;

use crate::load::LoadError;

/// Added to the variance, so that no divisor is zero.
const EPS: f64 = 1e-5;

/// Mean and standard deviation of each element of DINOv2's features, which make them latents.
///
/// ```text
/// z = (f - mean) / sqrt(var + 1e-5)
/// ```
#[derive(Debug, Clone)]
pub struct RaeStatistics {
    /// `(C, n, n)`, `f32`.
    mean: Tensor,
    std: Tensor,
}

impl RaeStatistics {
    /// Builds them from tensors `(C, n, n)`; no mean is a mean of 0.
    ///
    /// # Errors
    /// Other or different shapes; a mean or variance that is NaN or infinite, a variance below zero.
    pub fn new(mean: Option<&Tensor>, var: &Tensor) -> Result<Self> {
        let (_, rows, columns) = var.dims3()?;
        let var = var.to_dtype(DType::F32)?;
        let mean = mean.map_or_else(|| var.zeros_like(), |it| it.to_dtype(DType::F32))?;
        if rows != columns || mean.dims() != var.dims() {
            bail!("expected mean and var (C, n, n), got {:?} and {:?}", mean.shape(), var.shape());
        }
        let all = |tensor: &Tensor, is_good: fn(&f32) -> bool| -> Result<bool> {
            Ok(tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(is_good))
        };
        if !all(&mean, |it| it.is_finite())? || !all(&var, |it| it.is_finite() && *it >= 0.0)? {
            bail!("expected a finite mean and a finite var of at least 0, got others");
        }
        Ok(Self { mean, std: (var + EPS)?.sqrt()? })
    }

    /// Reads `var`, and `mean` if it is there, as in a published `stat.pt`; its `None` is no tensor.
    ///
    /// # Errors
    /// No `var`, and as [`new`](Self::new).
    pub fn load(
        source: &(impl TensorSource + ?Sized),
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let var = source.tensor("var", device)?;
        let mean = source.info("mean").map(|_| source.tensor("mean", device)).transpose()?;
        Ok(Self::new(mean.as_ref(), &var)?)
    }

    /// Channels, and positions along a side.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.mean.dims()[0], self.mean.dims()[1])
    }

    /// Fails unless these are statistics of `channels` and `grid` positions along a side.
    pub(super) fn check(&self, channels: usize, grid: usize) -> Result<()> {
        if self.size() != (channels, grid) {
            let (c, n) = self.size();
            bail!("expected statistics ({channels}, {grid}, {grid}), got ({c}, {n}, {n})");
        }
        Ok(())
    }

    /// Features to latents, both `(B, C, n, n)`.
    pub(super) fn normalise(&self, features: &Tensor) -> Result<Tensor> {
        features.broadcast_sub(&self.mean)?.broadcast_div(&self.std)
    }

    /// Latents to features, both `(B, C, n, n)`.
    pub(super) fn denormalise(&self, latents: &Tensor) -> Result<Tensor> {
        latents.broadcast_mul(&self.std)?.broadcast_add(&self.mean)
    }
}
