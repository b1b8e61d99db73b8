//! Sampling with a DDT on an NVIDIA GPU, and decoding what was sampled.
//!
//! A step of the network is written down before any GPU is looked for: [`Programs`] are lists of operations
//! ([`Op`]) on named buffers, one list for each [`StepKind`] and set of cached modulations, and an [`ArenaPlan`] gives
//! every buffer its place in one allocation.
//! `CudaSampler` uploads the weights once, captures the programs as graphs of fused kernels and GEMMs,
//! and launches one graph per step; inside the loop it allocates nothing and copies nothing to or from
//! the host.
//! With the feature `cuda-emulation` the CPU runs the same kernels, and tests compare the result with
//! [`ddt_model::sample`].
//!
//! ```
//! use ddt_cuda::{ArenaPlan, Batch, Precision, Programs, StepKind};
//! use ddt_model::DdtConfig;
//! use ddt_sharing::ForecastOrder;
//!
//! let cfg = DdtConfig::preset("ddt-xl2")?;
//! let order = ForecastOrder::Reuse;
//! let batch = Batch { images: 64, height: 32, width: 32, precision: Precision::Bf16, order };
//! let programs = Programs::new(&cfg, batch)?;
//! let plan = ArenaPlan::new(&programs);
//! assert!(plan.bytes() + plan.weight_bytes() < 12 << 30);
//! // A step that shares a self-condition is a list of its own, and a shorter one.
//! assert!(programs.step(StepKind::Shared, 0).len() < programs.step(StepKind::Guided, 0).len() / 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `CudaKlDecoder` turns latents into pixels on the same GPU, as many images at a time as a bound of memory allows,
//! and `CudaInception` turns pixels into the features that FID compares.
//!
//! # Crate features
//!
//! - `cuda` adds `CudaSampler`, `CudaKlDecoder` and `CudaInception` on a device that `Cuda::open` opens.
//! - `cuda-emulation` adds the same, and a device that runs the GPU's kernel sources on the CPU, for tests.

#![forbid(unsafe_code)]

#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
pub use crate::device::{CudaExecutor, CudaInception, CudaKlDecoder, CudaSampler, DeviceWeights};
pub use crate::{
    arena::{ArenaPlan, DECODER_BYTES, WORKSPACE_BYTES},
    buffer::{ALIGNMENT, Batch, Buffer, BufferId, Element, Lifetime, Precision, Span},
    error::GpuError,
    op::{Forecast, GemmShape, Modulation, Norm, NormKind, Op},
    program::Programs,
    run::{EulerOptions, OnStep, Run, RunStep},
    step_kind::{StepKind, step_kinds},
    synthetic::synthetic_weights,
    weights::{Weight, WeightId, WeightTable},
};
#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
pub use ddt_kernels::cuda::{Cuda, CudaError};

mod arena;
mod buffer;
#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
mod device;
mod error;
mod op;
mod operands;
mod program;
mod run;
mod step_kind;
mod synthetic;
mod weights;
