//! The frozen networks around DDT: autoencoders, and the feature extractors of training and evaluation.
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
//! everything wrong. In f32 and bf16 they run on the CPU on the operations of [`ddt_kernels`], on other devices on
//! candle's. [`to_rgb8`] and [`from_rgb8`] convert between pixels and bytes.
//!
//! # Example
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::VarBuilder;
//! use ddt_adapters::{Decode, LatentSpace, TinyConfig, TinyDecoder, to_rgb8};
//!
//! let weights = VarBuilder::zeros(DType::F32, &Device::Cpu);
//! let decoder = TinyDecoder::new(&TinyConfig::sd(), weights)?;
//! let latents = Tensor::zeros((1, decoder.latent_channels(), 2, 3), DType::F32, &Device::Cpu)?;
//! let pixels = decoder.decode(&latents)?;
//! assert_eq!(pixels.dims(), [1, 3, 16, 24]);
//! let images = to_rgb8(&pixels)?;
//! assert_eq!(images[0].len(), 16 * 24 * 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub use autoencoder::{Autoencoder, Decode, Encode, LatentSpace, PixelSpace, check_latents};
pub use dinov2::{DinoV2, DinoV2Config, DinoV2Features, DinoV2Mlp};
pub use inception::{Inception, InceptionFeatures};
pub use kl::{KlAutoencoder, KlConfig, KlDecoder, KlEncoder, Posterior};
pub use load::{LoadError, load_network};
pub use rae::{Rae, RaeDecoder, RaeDecoderConfig, RaeEncoder, RaeEncoderConfig, RaeStatistics};
pub use rgb8::{Rgb8Error, from_rgb8, to_rgb8};
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
