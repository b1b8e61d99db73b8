//! Sampling with a DDT on an NVIDIA GPU, and decoding what was sampled.
//!
//! A step of the network is written down before any GPU is looked for: [`Programs`] are lists of operations
//! ([`Op`]) on named buffers, one list for each [`StepKind`], and an [`ArenaPlan`] gives every buffer its
//! place in one allocation.
//! [`CudaSampler`] uploads the weights once, captures the programs as graphs of fused kernels and GEMMs,
//! and launches one graph per step; inside the loop it allocates nothing and copies nothing to or from
//! the host.
//! [`Reference`] runs the same programs on the same arena on the CPU. The tests hold it against
//! [`ddt_model::sample`], so all but the kernels themselves is proven without a GPU.
//!
//! ```
//! use ddt_cuda::{ArenaPlan, Batch, Precision, Programs, StepKind};
//! use ddt_model::DdtConfig;
//!
//! let cfg = DdtConfig::preset("ddt-xl2")?;
//! let batch = Batch { images: 64, height: 32, width: 32, precision: Precision::Bf16 };
//! let programs = Programs::new(&cfg, batch)?;
//! let plan = ArenaPlan::new(&programs);
//! assert!(plan.bytes() + plan.weight_bytes() < 12 << 30);
//! // A step that shares a self-condition is a list of its own, and a shorter one.
//! assert!(programs.step(StepKind::Shared).len() < programs.step(StepKind::Guided).len() / 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`CudaKlDecoder`] turns latents into pixels on the same GPU, as many images at a time as a bound of memory allows,
//! and [`CudaInception`] turns pixels into the features that FID compares.
//!
//! # Crate features
//!
//! - `cuda` makes [`CudaSampler`], [`CudaKlDecoder`] and [`CudaInception`] work; without it, opening one is an error that says so.
//! - `cuda-emulation` runs the GPU's kernel sources on the CPU, for tests.

#![forbid(unsafe_code)]

#[cfg(not(any(feature = "cuda", feature = "cuda-emulation")))]
pub use crate::absent::{CudaInception, CudaKlDecoder, CudaSampler, gpu_name};
#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
pub use crate::device::{CudaExecutor, CudaInception, CudaKlDecoder, CudaSampler, DeviceWeights, gpu_name};
pub use crate::{
    arena::{ALIGNMENT, ArenaPlan, DECODER_BYTES, WORKSPACE_BYTES},
    error::GpuError,
    program::{
        Batch, Buffer, BufferId, Element, GemmShape, Lifetime, Modulation, Norm, NormKind, Op, Precision,
        Programs, Span,
    },
    reference::Reference,
    run::{EulerOptions, Executor, OnStep, Run, RunStep, execute},
    step_kind::{StepKind, step_kinds},
    weight_source::{WeightSource, builder_by_formula, by_formula, from_map},
    weights::{Weight, WeightId, WeightTable},
};

#[cfg(not(any(feature = "cuda", feature = "cuda-emulation")))]
mod absent;
mod arena;
#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
mod device;
mod error;
pub mod parity;
mod program;
mod reference;
mod run;
mod step_kind;
mod weight_source;
mod weights;
