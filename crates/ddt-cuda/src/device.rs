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
mod weights;
