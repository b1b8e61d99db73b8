//! The Decoupled Diffusion Transformer (arXiv:2504.05741).
//!
//! A [`Ddt`] is two networks with one set of weights.
//! Its [`ConditionEncoder`] turns (noisy latent, time, class) into a self-condition `z_t`;
//! its [`VelocityDecoder`] turns (noisy latent, `z_t`) into a velocity.
//! [`Ddt::load`] reads the published checkpoints and this project's own files, [`sample`] draws latents,
//! and [`Shared`] keeps one self-condition for several steps as a
//! [`SharingPlan`](ddt_sharing::SharingPlan) says.
//!
//! The paper's other systems, SiT, REPA and their improved forms, are [`DecoderOnly`] networks. All of them
//! are a [`VelocityNetwork`], which a [`NetworkConfig`] describes, builds and names.
//!
//! Time runs from 0, pure noise, to 1, data.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use ddt_flow::{EULER, Guidance, TimeGrid, noise_batch};
//! use ddt_model::{Ddt, DdtConfig, SampleOptions, sample};
//!
//! // Free sizes; `DdtConfig::preset("ddt-xl2-22en6de")` has the paper's.
//! let cfg = DdtConfig {
//!     in_channels: 4,
//!     patch_size: 2,
//!     hidden_size: 32,
//!     num_heads: 2,
//!     num_encoder_blocks: 2,
//!     num_decoder_blocks: 1,
//!     num_classes: 10,
//! };
//! let network = Ddt::random(&cfg, 0, DType::F32, &Device::Cpu)?;
//! let noise = noise_batch(0, &[0, 1], (4, 8, 8), &Device::Cpu)?;
//! let options = SampleOptions {
//!     grid: TimeGrid::new(5, None, 1.0)?,
//!     solver: &EULER,
//!     guidance: Guidance::new(2.0, (0.3, 1.0))?,
//!     plan: None,
//! };
//! let sampled = sample(&network, &noise, &[3, 7], &options, &mut |_| std::ops::ControlFlow::Continue(()))?;
//! assert_eq!(sampled.latents.dims(), &[2, 4, 8, 8]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub use crate::{
    condition_encoder::ConditionEncoder,
    config::{ConfigError, DdtConfig},
    ddt::Ddt,
    decoder_only::DecoderOnly,
    error::ModelError,
    file::{DdtFile, Description, LatentInfo},
    labelled::Labelled,
    network::VelocityNetwork,
    network_config::{Family, NetworkConfig, Projection, TokenMixer},
    sample::{OnStep, SampleOptions, Sampled, sample, sample_autoguided},
    seeded_init::SeededInit,
    shared::{NetworkCalls, RecomputeSchedule, Shared, SharedState},
    velocity_decoder::{DecoderModulations, VelocityDecoder},
};

mod condition_encoder;
mod config;
mod cost;
mod ddt;
mod decoder_only;
mod embed;
mod error;
mod file;
mod labelled;
mod network;
mod network_block;
mod network_config;
mod network_preset;
mod parameter_shapes;
mod preset;
mod projector;
mod sample;
mod seeded_init;
mod shared;
mod velocity_decoder;
