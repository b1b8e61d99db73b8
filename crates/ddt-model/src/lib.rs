#![doc = include_str!("../README.md")]
//!
//! # Contents
//!
//! A [`Ddt`] is two networks with one set of weights, a [`ConditionEncoder`] and a [`VelocityDecoder`].
//! It is the definition; a [`TrainingDdt`] and a [`FrozenDdt`] compute the same faster.
//! [`Ddt::load`] reads this project's own files too, and [`Shared`] reuses a self-condition as a
//! [`SharingPlan`](ddt_sharing::SharingPlan) says.
//!
//! The paper's other systems are small networks of their own: [`ImprovedSit`], [`MixerDdt`], [`DdtDagger`], [`Sit`]
//! and [`Repa`]. [`DitDh`] is a later network of the same split. All networks are a [`VelocityNetwork`], which a
//! [`NetworkConfig`] describes, names and builds; those of two halves are a [`DecoupledNetwork`] too.
//!
//! Time runs from 0, pure noise, to 1, data.

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
pub use file::{DdtFile, Description, LatentInfo, parameter_dtype};
pub use init::SeededInit;
pub use network::{DecoderModulations, DecoupledNetwork, NoisyInput, VelocityNetwork};
pub use network_config::{Family, NetworkConfig, Projection, TokenMixer};
pub use sample::{Labelled, OnStep, SampleOptions, Sampled, check_batch, sample, sample_autoguided};
pub use shared::{NetworkCalls, RecomputeSchedule, Shared, SharedState};
