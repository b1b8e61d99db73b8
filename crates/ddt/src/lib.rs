#![doc = include_str!("../README.md")]
//!
//! # Contents
//!
//! A [`PipelineConfig`] says how images are made, a [`Request`] which; a [`Pipeline`] makes them. [`Generated`] images
//! know both, and their PNG file carries them as a [`Record`]. The libraries below are each of use by themselves:
//!
//! - [`model`] is the network and its files; [`flow`] time grids, solvers, guidance, noise; [`sharing`] plans where
//!   sampling recomputes the self-condition;
//! - [`adapters`] are the autoencoders, [`picture`] images and pages, [`hub`] published files on this machine;
//! - [`files`], [`blocks`] and [`kernels`] are the layers below.

#![forbid(unsafe_code)]

#[cfg(feature = "clap")]
pub mod args;
mod classes;
mod config;
#[cfg(feature = "cuda")]
mod cuda;
mod decoder_file;
mod decoding;
mod engine;
mod error;
mod generated;
#[cfg(feature = "candle-cuda")]
mod gpu_device;
mod linear;
mod opened;
mod output;
mod pipeline;
mod progress;
mod share;
mod similarity;
mod weights;

pub use crate::{
    classes::ClassTable,
    config::{Dtype, Fidelity, Image, PipelineConfig, Place, Request, Rounding, SolverName, Source},
    decoding::decode_latents,
    error::{Error, Result},
    generated::{Generated, RECORD_KEY, Record, Report, VERSION, relative_errors},
    linear::LinearDecoder,
    opened::Opened,
    output::OutputFile,
    pipeline::{Identified, Pipeline, Watch},
    progress::{Progress, duration_in_words},
    share::Sharing,
    weights::{demo_file, sha256_of},
};
pub use ddt_adapters as adapters;
pub use ddt_blocks as blocks;
#[cfg(feature = "cuda")]
pub use ddt_cuda as gpu;
pub use ddt_files as files;
pub use ddt_flow as flow;
pub use ddt_hub as hub;
pub use ddt_kernels as kernels;
pub use ddt_model as model;
pub use ddt_picture as picture;
pub use ddt_sharing as sharing;

/// Prepares the process for sampling: `threads` threads (0 is one per core), and freed memory that is kept for the
/// next step.
///
/// # Errors
/// If threads were started before.
pub fn start(threads: usize) -> Result<()> {
    ddt_kernels::retain_freed_memory();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    pool.map_err(|error| Error::Library(error.into()))
}

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
