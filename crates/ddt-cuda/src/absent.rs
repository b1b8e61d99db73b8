//! The public types of a build without GPU support; opening one is an error.

use std::convert::Infallible;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use ddt_adapters::{Decode, InceptionFeatures, KlConfig, LatentSpace, inception::FoldedInception};
use ddt_model::{DdtConfig, Sampled};

use crate::{
    error::GpuError,
    program::Precision,
    run::{EulerOptions, OnStep},
    weight_source::WeightSource,
};

/// Says how to build with a GPU.
///
/// # Errors
/// [`GpuError::NotBuilt`], always.
pub fn gpu_name(_: usize) -> Result<String, GpuError> {
    Err(GpuError::NotBuilt)
}

/// A network on a GPU; this build has none, so it cannot be opened.
#[derive(Debug)]
pub struct CudaSampler {
    never: Infallible,
}

impl CudaSampler {
    /// Says how to build with a GPU.
    ///
    /// # Errors
    /// [`GpuError::NotBuilt`], always.
    pub fn open(_: usize, _: &DdtConfig, _: Precision, _: WeightSource<'_>) -> Result<Self, GpuError> {
        Err(GpuError::NotBuilt)
    }

    /// Name of the device.
    pub fn device_name(&self) -> &str {
        match self.never {}
    }

    /// Draws nothing: there is no such sampler.
    ///
    /// # Errors
    /// Never returns.
    pub fn sample(
        &mut self,
        _: &Tensor,
        _: &[u32],
        _: &EulerOptions<'_>,
        _: &mut OnStep<'_>,
    ) -> Result<Sampled, GpuError> {
        match self.never {}
    }
}

/// A decoder on a GPU; this build has none, so it cannot be opened.
#[derive(Debug)]
pub struct CudaKlDecoder {
    never: Infallible,
}

impl CudaKlDecoder {
    /// Says how to build with a GPU.
    ///
    /// # Errors
    /// [`GpuError::NotBuilt`], always.
    pub fn open(_: usize, _: &KlConfig, _: Precision, _: usize, _: VarBuilder<'_>) -> Result<Self, GpuError> {
        Err(GpuError::NotBuilt)
    }
}

impl LatentSpace for CudaKlDecoder {
    fn latent_channels(&self) -> usize {
        match self.never {}
    }

    fn downscale(&self) -> usize {
        match self.never {}
    }
}

impl Decode for CudaKlDecoder {
    fn decode(&self, _: &Tensor) -> candle_core::Result<Tensor> {
        match self.never {}
    }
}

/// Inception on a GPU; this build has none, so it cannot be opened.
#[derive(Debug)]
pub struct CudaInception {
    never: Infallible,
}

impl CudaInception {
    /// Says how to build with a GPU.
    ///
    /// # Errors
    /// [`GpuError::NotBuilt`], always.
    pub fn open(_: usize, _: &FoldedInception) -> Result<Self, GpuError> {
        Err(GpuError::NotBuilt)
    }

    /// Name of the device.
    pub fn device_name(&self) -> &str {
        match self.never {}
    }

    /// Sees nothing: there is no such network.
    ///
    /// # Errors
    /// Never returns.
    pub fn forward(&self, _: &Tensor) -> Result<InceptionFeatures, GpuError> {
        match self.never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_says_how_to_build() {
        let cfg = DdtConfig::preset("ddt-b2").unwrap();
        let source = crate::by_formula(0);
        let error = CudaSampler::open(0, &cfg, Precision::Bf16, &source).unwrap_err().to_string();
        assert!(error.contains("--features cuda"), "{error}");
    }
}
