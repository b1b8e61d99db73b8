//! Programs on a device: uploaded weights, one arena, captured graphs.

pub use executor::CudaExecutor;
pub use inception::CudaInception;
pub use kl::CudaKlDecoder;
pub use sampler::CudaSampler;
pub use weights::DeviceWeights;

mod executor;
mod inception;
mod kl;
mod launch;
mod sampler;
mod upload;
mod weights;

/// Name of GPU `device`, from 0.
///
/// # Errors
/// [`GpuError::NotBuilt`](crate::GpuError::NotBuilt) without the feature `cuda`;
/// [`GpuError::Kernel`](crate::GpuError::Kernel) where there is no driver or no such device.
pub fn gpu_name(device: usize) -> Result<String, crate::GpuError> {
    Ok(open(device)?.name().to_owned())
}

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
