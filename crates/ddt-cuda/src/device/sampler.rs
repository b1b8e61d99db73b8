//! Sampling on a device.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use ddt_kernels::cuda::Cuda;
use ddt_model::{DdtConfig, ModelError, Sampled};

use super::{executor::CudaExecutor, weights::DeviceWeights};
use crate::{
    buffer::Precision,
    error::GpuError,
    program::Programs,
    run::{EulerOptions, OnStep, Run},
    weights::WeightTable,
};

/// A network on a GPU, ready to sample.
#[derive(Debug)]
pub struct CudaSampler {
    cuda: Cuda,
    cfg: DdtConfig,
    weights: DeviceWeights,
    /// Executor for the size and order of the latest batch.
    executor: Option<CudaExecutor>,
}

impl CudaSampler {
    /// Uploads the weights in the given precision; `vb` gives them under the names of the published checkpoints.
    ///
    /// # Errors
    /// Weights that do not fit or are not the network's; [`GpuError::Kernel`] where there is no cuBLASLt.
    pub fn new(
        cuda: &Cuda,
        cfg: &DdtConfig,
        precision: Precision,
        vb: &VarBuilder<'_>,
    ) -> Result<Self, GpuError> {
        cfg.validate().map_err(ModelError::from)?;
        let weights = DeviceWeights::upload(cuda, &WeightTable::new(cfg), precision, vb)?;
        Ok(Self { cuda: cuda.clone(), cfg: cfg.clone(), weights, executor: None })
    }

    /// Generates one latent for each label with Euler's method, starting from `noise`, `(B, C, H, W)` standard
    /// normal, as [`ddt_model::sample`] does, in the precision of the weights.
    ///
    /// Memory is allocated for the size of a batch and the order of its plan, and reallocated when either changes.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`], which says how many images would fit; otherwise as [`CudaExecutor::run`].
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
        self.executor.insert(executor).run(&run, on_step)
    }
}
