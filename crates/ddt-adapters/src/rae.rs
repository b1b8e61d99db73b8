//! The representation autoencoder: DINOv2 encodes, and a vision transformer that was trained for it decodes.
//!
//! Follows [`stage1`] of RAE (arXiv:2510.11690) and keeps the names of its files. A published autoencoder is in three
//! of them: the encoder, the decoder, and the statistics of the latents.
//!
//! [`stage1`]: https://github.com/bytetriper/RAE/tree/main/src/stage1

mod config;
mod decoder;
mod encoder;
mod statistics;

use crate::autoencoder::Autoencoder;

pub use self::config::RaeDecoderConfig;
pub use self::decoder::RaeDecoder;
pub use self::encoder::{RaeEncoder, RaeEncoderConfig};
pub use self::statistics::RaeStatistics;

/// Both halves of a representation autoencoder.
///
/// ```text
/// latents = (dinov2(pixels) - mean) / std,   pixels = decode(latents std + mean)
/// ```
pub type Rae = Autoencoder<RaeEncoder, RaeDecoder>;
