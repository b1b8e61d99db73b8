//! Errors of sampling on a GPU.

use ddt_model::ModelError;

/// Why sampling on a GPU did not start or did not end well.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum GpuError {
    /// No driver, no such device, or a call of the driver or of a library failed.
    #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
    #[error(transparent)]
    Kernel(#[from] ddt_kernels::cuda::CudaError),
    /// Weights or images do not fit into the GPU's memory; the message has the bytes.
    #[error("{message}")]
    OutOfMemory {
        /// Bytes needed and free, and what would fit.
        message: String,
        /// Images that fit at once; 0 when not even one does.
        fit: usize,
    },
    /// Sizes of a network or a batch that the GPU's programs or kernels do not have; the message says what they have.
    #[error("{0}")]
    Unsupported(String),
    /// Labels, noise or a plan that do not fit, a cancelled run or a latent that is not finite, as on the CPU.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor could not be read or made.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
