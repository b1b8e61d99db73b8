//! Pixel space: the autoencoder that does nothing.

use candle_core::{DType, Result, Tensor};

use crate::autoencoder::{Autoencoder, check_pixels};

/// The identity, for networks that draw pixels directly: 3 channels, no downscaling.
///
/// Takes pixels of any floating point type and gives `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelSpace;

impl Autoencoder for PixelSpace {
    fn latent_channels(&self) -> usize {
        3
    }

    fn downscale(&self) -> usize {
        1
    }

    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        check_pixels(pixels, 1)?;
        pixels.to_dtype(DType::F32)
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.encode(latents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, rel_rms};

    #[test]
    fn pixels_pass_through_and_other_shapes_do_not() {
        let pixels = random(1, (2, 3, 5, 4));
        assert_eq!(rel_rms(&PixelSpace.decode(&PixelSpace.encode(&pixels).unwrap()).unwrap(), &pixels), 0.0);
        assert!(PixelSpace.decode(&random(1, (2, 4, 5, 4))).is_err());
    }
}
