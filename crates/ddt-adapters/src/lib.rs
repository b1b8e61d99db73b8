#![doc = include_str!("../README.md")]
//!
//! # Contents
//!
//! An encoder ([`Encode`]) maps pixels in `[-1, 1]` to the latents that a network is trained on, a decoder
//! ([`Decode`]) maps latents to pixels:
//!
//! - [`KlAutoencoder`] is Stable Diffusion's, which the published weights were trained with; [`KlEncoder`] and
//!   [`KlDecoder`] are its halves;
//! - [`TinyAutoencoder`] is a small approximation; [`TinyEncoder`] and [`TinyDecoder`] are its halves;
//! - [`Rae`] has the features of DINOv2 as latents; [`RaeEncoder`] and [`RaeDecoder`] are its halves;
//! - [`PixelSpace`] is the identity, for networks that generate pixels directly.
//!
//! Two feature extractors read pixels:
//!
//! - [`DinoV2`], whose patch tokens are the targets of representation alignment;
//! - [`Inception`], whose features FID, sFID, the Inception Score, precision and recall compare.
//!
//! Each is loaded from a [`TensorSource`](ddt_files::TensorSource), usually a
//! [`Checkpoint`](ddt_files::Checkpoint): all of its tensors, or one [`LoadError`] that names
//! everything wrong. [`to_rgb8`] and [`from_rgb8`] convert between pixels and bytes.

#![forbid(unsafe_code)]

pub use autoencoder::{Autoencoder, Decode, Encode, LatentSpace, PixelSpace, check_latents};
pub use dinov2::{DinoV2, DinoV2Config, DinoV2Features, DinoV2Mlp};
pub use inception::{Inception, InceptionFeatures};
pub use kl::{KlAutoencoder, KlConfig, KlDecoder, KlEncoder, Posterior};
pub use load::{LoadError, load_network};
pub use rae::{Rae, RaeDecoder, RaeDecoderConfig, RaeEncoder, RaeEncoderConfig, RaeStatistics};
pub use rgb8::{Rgb8Error, from_rgb8, to_rgb8, to_rgb8_down};
pub use tiny::{TinyAutoencoder, TinyConfig, TinyDecoder, TinyEncoder};

pub mod inception;

mod autoencoder;
mod dinov2;
mod kl;
mod layers;
mod load;
mod rae;
mod resize;
mod rgb8;
#[cfg(test)]
mod testing;
mod tiny;
mod vit;
