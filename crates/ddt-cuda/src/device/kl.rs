//! Stable Diffusion's decoder on a device: latents to pixels.
//!
//! [`program`] is the decoder as a list of operations on three buffers, [`weights`] are their operands,
//! [`place`] has the positions in memory for a number of images, and [`decoder`] runs it.

pub use decoder::CudaKlDecoder;

mod attention;
mod decoder;
mod place;
mod program;
mod weights;
