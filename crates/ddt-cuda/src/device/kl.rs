//! Stable Diffusion's decoder on a device: latents to pixels.
//!
//! [`program`] is the decoder as a list of operations on three buffers, [`weights`] what they multiply with,
//! [`place`] where everything lies for a number of images, and [`decoder`] what runs it.

pub use decoder::CudaKlDecoder;

mod attention;
mod decoder;
mod place;
mod program;
mod weights;
