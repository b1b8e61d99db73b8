//! Sampling on a device.

use candle_core::Tensor;
use ddt_kernels::cuda::Cuda;
use ddt_model::{DdtConfig, Sampled};

use super::{executor::CudaExecutor, weights::DeviceWeights};
use crate::{
    error::GpuError,
    program::{Precision, Programs},
    run::{EulerOptions, OnStep, Run, execute},
    weight_source::WeightSource,
    weights::WeightTable,
};

/// A network on a GPU, ready to sample.
#[derive(Debug)]
pub struct CudaSampler {
    cuda: Cuda,
    cfg: DdtConfig,
    weights: DeviceWeights,
    /// For the size of the latest batch.
    executor: Option<CudaExecutor>,
}

impl CudaSampler {
    /// Opens GPU `device`, from 0, and uploads the weights in the given precision.
    ///
    /// # Errors
    /// [`GpuError::NotBuilt`] without the feature `cuda`; [`GpuError::Kernel`] where there is no driver, no
    /// such device or no cuBLASLt; weights that do not fit or are not the network's.
    pub fn open(
        device: usize,
        cfg: &DdtConfig,
        precision: Precision,
        source: WeightSource<'_>,
    ) -> Result<Self, GpuError> {
        Self::on(&super::open(device)?, cfg, precision, source)
    }

    /// The same on a device that is open.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn on(
        cuda: &Cuda,
        cfg: &DdtConfig,
        precision: Precision,
        source: WeightSource<'_>,
    ) -> Result<Self, GpuError> {
        cfg.validate()?;
        let weights = DeviceWeights::upload(cuda, &WeightTable::new(cfg), precision, source)?;
        Ok(Self { cuda: cuda.clone(), cfg: cfg.clone(), weights, executor: None })
    }

    /// Name of the device.
    pub fn device_name(&self) -> &str {
        self.cuda.name()
    }

    /// Generates one latent for each label with Euler's method, starting from `noise`, `(B, C, H, W)` standard
    /// normal, as [`ddt_model::sample`] does, in the precision of the weights.
    ///
    /// Memory is allocated for the size of a batch, and reallocated when the size changes.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`], which names a batch that fits; otherwise as [`execute`].
    pub fn sample(
        &mut self,
        noise: &Tensor,
        labels: &[u32],
        options: &EulerOptions<'_>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Sampled, GpuError> {
        let run = Run::new(&self.cfg, self.weights.precision, noise, labels, options)?;
        let ready = self.executor.take().filter(|it| it.programs().batch() == run.batch);
        let executor = match ready {
            Some(executor) => executor,
            None => {
                let programs = Programs::new(&self.cfg, run.batch)?;
                CudaExecutor::new(&self.cuda, programs, &self.weights)?
            }
        };
        let executor = self.executor.insert(executor);
        execute(executor, &self.cfg, &run, on_step)
    }
}
