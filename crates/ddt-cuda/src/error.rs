//! Errors of sampling on a GPU.

use ddt_flow::FlowError;
use ddt_model::{ConfigError, ModelError};
use ddt_sharing::PlanError;

/// Why sampling on a GPU did not start or did not end well.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum GpuError {
    /// The program was built without the feature.
    #[error("this build computes on the CPU alone; build it with --features cuda, see docs/CUDA.md")]
    NotBuilt,
    /// No driver, no such device, or a call of the driver or of a library failed.
    #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
    #[error(transparent)]
    Kernel(#[from] ddt_kernels::cuda::CudaError),
    /// The batch does not fit into the GPU's memory.
    #[error(
        "{images} images need {needed} bytes of GPU memory where {free} are free; {fit} images at once would fit"
    )]
    OutOfMemory {
        /// Images asked for at once.
        images: usize,
        /// Bytes that they take beside the weights.
        needed: usize,
        /// Bytes that are free.
        free: usize,
        /// Images that fit; 0 when not even one does.
        fit: usize,
    },
    /// Not even one image can be decoded.
    #[error(
        "decoding one image of this size takes {needed} bytes of GPU memory, expected at most {bound}; {free} are free"
    )]
    DecoderMemory {
        /// Bytes that one image takes beside the weights.
        needed: usize,
        /// Available memory: the decoder's bound, or less where less is free.
        bound: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// Not even the weights fit.
    #[error("the weights need {needed} bytes of GPU memory where {free} are free; use a smaller network")]
    WeightsOutOfMemory {
        /// Bytes of the weights.
        needed: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// Invalid sizes of a batch.
    #[error(
        "expected 1 to 65536 images with sides that are positive multiples of {patch_size}, got {images} of {height} x {width}"
    )]
    Batch {
        /// Images.
        images: usize,
        /// Height of a latent.
        height: usize,
        /// Width of a latent.
        width: usize,
        /// The network's patch.
        patch_size: usize,
    },
    /// A buffer larger than any memory.
    #[error("the buffer for {name} would have {elements} elements; draw fewer or smaller images at once")]
    TooLarge {
        /// Its contents.
        name: String,
        /// Its elements.
        elements: usize,
    },
    /// The kernels have no variant for these sizes.
    #[error("{what} is {got}, the GPU's kernels take {expected}; draw with --device cpu")]
    Unsupported {
        /// The size or setting.
        what: &'static str,
        /// Supported values.
        expected: &'static str,
        /// The actual value.
        got: String,
    },
    /// A weight of another shape than the sizes say.
    #[error("{name} has shape {got:?}, expected {expected:?}")]
    Weight {
        /// The published name.
        name: String,
        /// The shape of a network of these sizes.
        expected: Vec<usize>,
        /// Its shape.
        got: Vec<usize>,
    },
    /// Sizes that make no network.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Labels or noise that do not fit, as on the CPU.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Sampling failed or was cancelled, as on the CPU.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// A plan that does not fit, as on the CPU.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A tensor could not be read or made.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
