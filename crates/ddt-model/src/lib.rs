//! The Decoupled Diffusion Transformer (arXiv:2504.05741).
//!
//! A [`Ddt`] is two networks with one set of weights.
//! Its [`ConditionEncoder`] turns (noisy latent, time, class) into a self-condition `z_t`;
//! its [`VelocityDecoder`] turns (noisy latent, `z_t`) into a velocity.
//! `Ddt` is the definition; a [`TrainingDdt`] and a [`FrozenDdt`] compute the same faster.
//! [`Ddt::load`] reads the published checkpoints and this project's own files, [`sample`] generates latents,
//! and [`Shared`] reuses one self-condition for several steps as a
//! [`SharingPlan`](ddt_sharing::SharingPlan) says.
//!
//! The paper's other systems are small networks of their own: [`ImprovedSit`], [`MixerDdt`], [`DdtDagger`], [`Sit`]
//! and [`Repa`]. [`DitDh`] is a later network of the same split. All networks are a [`VelocityNetwork`], which a [`NetworkConfig`] describes, names and builds; those
//! of two halves are a [`DecoupledNetwork`] too.
//!
//! Time runs from 0, pure noise, to 1, data.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use ddt_flow::{EULER, Guidance, TimeGrid, noise_batch};
//! use ddt_model::{Ddt, DdtConfig, SampleOptions, sample};
//!
//! // A small network; `DdtConfig::xl_2()` has the paper's sizes.
//! let cfg = DdtConfig {
//!     in_channels: 4,
//!     patch_size: 2,
//!     hidden_size: 32,
//!     num_heads: 2,
//!     num_encoder_blocks: 2,
//!     num_decoder_blocks: 1,
//!     num_classes: 10,
//! };
//! let network = Ddt::random(&cfg, 0, DType::F32, &Device::Cpu)?.freeze()?;
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

mod baselines;
mod build;
mod config;
mod ddt;
mod dit_dh;
mod dit_dh_config;
mod error;
mod file;
mod init;
mod network;
mod network_config;
mod sample;
mod shared;

pub use baselines::{DdtDagger, ImprovedSit, MixerDdt, Repa, Sit};
pub use config::{ConfigError, DdtConfig};
pub use ddt::{ConditionEncoder, Ddt, FrozenDdt, TrainingDdt, VelocityDecoder};
pub use dit_dh::DitDh;
pub use dit_dh_config::DitDhConfig;
pub use error::ModelError;
pub use file::{DdtFile, Description, LatentInfo};
pub use init::SeededInit;
pub use network::{DecoderModulations, DecoupledNetwork, NoisyInput, VelocityNetwork};
pub use network_config::{Family, NetworkConfig, Projection, TokenMixer};
pub use sample::{Labelled, OnStep, SampleOptions, Sampled, check_batch, sample, sample_autoguided};
pub use shared::{NetworkCalls, RecomputeSchedule, Shared, SharedState};
