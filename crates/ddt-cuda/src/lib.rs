#![doc = include_str!("../README.md")]
//!
//! # Contents
//!
//! [`Programs`] are lists of operations ([`Op`]) on named buffers, one list for each [`StepKind`] and set of cached
//! modulations, and an [`ArenaPlan`] gives every buffer its place in one allocation.
//! `CudaSampler` uploads the weights once, captures the programs as graphs of fused kernels and GEMMs,
//! and launches one graph per step; inside the loop it allocates nothing and copies nothing to or from
//! the host.
//! `CudaKlDecoder` turns latents into pixels on the same GPU, as many images at a time as a memory limit allows,
//! and `CudaInception` turns pixels into the features that FID compares.
//!
//! With the feature `cuda-emulation` the CPU runs the same kernels, and tests compare the result with
//! [`ddt_model::sample`].

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
