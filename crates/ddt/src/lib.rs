//! The Decoupled Diffusion Transformer (arXiv:2504.05741) on candle: every library of the workspace
//! behind one name.
//!
//! - [`model`] is the network; alone it is enough to load weights and call them.
//! - [`flow`] is flow matching: time grids, solvers, guidance, noise.
//! - [`sharing`] plans where sampling recomputes the self-condition.
//! - [`train`] trains; [`adapters`] are the frozen networks around it; [`data`] is photos.
//! - [`metrics`] measures samples; [`npz`] is the archives they are kept in.
//! - [`analysis`] is the paper's analyses: spectra, diffusions, errors of solvers.
//! - [`cuda`] samples on NVIDIA GPUs.
//! - [`blocks`], [`kernels`] and [`files`] are what the others are made of.
//!
//! # Crate features
//!
//! - `cuda` makes [`cuda`] find a GPU; compiling takes NVIDIA's compiler.
//! - `hub` downloads published weights into the hub's local cache.

#![forbid(unsafe_code)]

pub use ddt_adapters as adapters;
pub use ddt_analysis as analysis;
pub use ddt_blocks as blocks;
pub use ddt_cuda as cuda;
pub use ddt_data as data;
pub use ddt_files as files;
pub use ddt_files::npz;
pub use ddt_flow as flow;
pub use ddt_kernels as kernels;
pub use ddt_metrics as metrics;
pub use ddt_model as model;
pub use ddt_sharing as sharing;
pub use ddt_train as train;

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
