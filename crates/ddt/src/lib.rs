//! The Decoupled Diffusion Transformer (arXiv:2504.05741) on candle: every library of the workspace
//! behind one name.
//!
//! - [`model`] is the network; alone it is enough to load weights and call them.
//! - [`flow`] is flow matching: time grids, solvers, guidance, noise.
//! - [`sharing`] plans where sampling recomputes the self-condition.
//! - [`train`] trains; [`adapters`] are the autoencoders around the network.
//! - [`blocks`], [`kernels`] and [`checkpoint`] are what the others are made of.
//!
//! # Crate features
//!
//! - `hub` downloads published weights into the hub's local cache.

#![forbid(unsafe_code)]

pub use ddt_adapters as adapters;
pub use ddt_blocks as blocks;
pub use ddt_checkpoint as checkpoint;
pub use ddt_flow as flow;
pub use ddt_kernels as kernels;
pub use ddt_model as model;
pub use ddt_sharing as sharing;
pub use ddt_train as train;

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
