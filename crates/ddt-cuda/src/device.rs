//! Programs on a device: uploaded weights, one arena, captured graphs.

pub use executor::CudaExecutor;
pub use inception::CudaInception;
pub use kl::{CudaKlDecoder, DECODER_BYTES};
pub use sampler::CudaSampler;
pub use weights::DeviceWeights;

mod executor;
mod inception;
mod kl;
mod launch;
mod sampler;
mod weights;

/// Opens a GPU.
#[cfg(feature = "cuda")]
fn open(device: usize) -> Result<ddt_kernels::cuda::Cuda, crate::GpuError> {
    Ok(ddt_kernels::cuda::Cuda::open(device)?)
}

/// Kernels on the CPU are for tests, which open them by themselves.
#[cfg(not(feature = "cuda"))]
fn open(_: usize) -> Result<ddt_kernels::cuda::Cuda, crate::GpuError> {
    Err(crate::GpuError::NotBuilt)
}
