//! Demo weights: bytes of safetensors files, as parts of the program.
//!
//! - [`NETWORK`] is a latent DDT of 9.7 million parameters (6 encoder and 2 decoder blocks of 256 channels), trained
//!   by this project on CIFAR-10: ten classes, 32 x 32 pixels. Its metadata says how.
//! - [`TINY_ENCODER`] and [`TINY_DECODER`] are the halves of the 32-channel tiny autoencoder whose latents it
//!   generates. MIT, © 2023 Ollin Boer Bohan; the notice is in the files' metadata.
//! - [`CLASSIFIER`] is a small network that tells CIFAR-10's classes apart (80 % of the test photos), to measure
//!   generated images without any download.
//!
//! The bytes are static, so reading them copies nothing.
//!
//! ```
//! // A safetensors file begins with the length of its JSON header.
//! let length = u64::from_le_bytes(*ddt_demo::NETWORK.first_chunk().unwrap()) as usize;
//! assert!(ddt_demo::NETWORK[8..8 + length].starts_with(b"{"));
//! ```

#![forbid(unsafe_code)]

use {ddt_demo_a::PART as FIRST, ddt_demo_b::PART as SECOND, ddt_demo_c::PART as THIRD};

/// The demo network.
pub static NETWORK: &[u8] = &JOINED;

/// Its autoencoder's encoder: pixels to latents.
pub static TINY_ENCODER: &[u8] = include_bytes!("tiny-flux2-encoder.safetensors");

/// Its autoencoder's decoder: latents to pixels.
pub static TINY_DECODER: &[u8] = include_bytes!("tiny-flux2-decoder.safetensors");

/// A classifier of CIFAR-10.
pub static CLASSIFIER: &[u8] = include_bytes!("cifar10-classifier.safetensors");

/// Joined by the compiler: three packages hold what one may not.
static JOINED: [u8; FIRST.len() + SECOND.len() + THIRD.len()] = {
    let mut bytes = [0; FIRST.len() + SECOND.len() + THIRD.len()];
    let (first, rest) = bytes.split_at_mut(FIRST.len());
    let (second, third) = rest.split_at_mut(SECOND.len());
    first.copy_from_slice(FIRST);
    second.copy_from_slice(SECOND);
    third.copy_from_slice(THIRD);
    bytes
};
