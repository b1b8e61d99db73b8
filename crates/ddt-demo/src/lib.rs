#![doc = include_str!("../README.md")]
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
