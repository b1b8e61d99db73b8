//! The trait that every autoencoder implements, and how a large batch passes through one.

use candle_core::{DType, Result, Tensor, bail};

/// Pixels that pass through a network at once, if they are not one image: 16 images of 32 px.
const MAX_PIXELS_AT_ONCE: usize = 128 * 128;

/// A frozen map between pixels and the latents that a network is trained on.
///
/// Pixels are `f32` in `[-1, 1]` for every implementation, whatever the network behind it uses;
/// decoded pixels are not clamped.
/// Latents are as the network sees them: scale and shift belong to the implementation.
/// Both methods work on a few images at a time, so memory does not grow with the batch.
/// Frozen means frozen: on the CPU, a `backward` through one is an error, not a gradient that is lost.
///
/// Shape letters: `H W` height and width of the latents, `f` the [`downscale`](Self::downscale),
/// `C` the [`latent_channels`](Self::latent_channels).
pub trait Autoencoder {
    /// Channels of the latents.
    fn latent_channels(&self) -> usize;

    /// Pixels along a side of one latent position.
    fn downscale(&self) -> usize;

    /// Pixels to latents, deterministically (a mean where there is a distribution).
    ///
    /// # Shapes
    ///
    /// `(B, 3, f H, f W) -> (B, C, H, W)`
    ///
    /// # Errors
    ///
    /// Any other shape, and an implementation without an encoder.
    fn encode(&self, pixels: &Tensor) -> Result<Tensor>;

    /// Latents to pixels.
    ///
    /// # Shapes
    ///
    /// `(B, C, H, W) -> (B, 3, f H, f W)`
    ///
    /// # Errors
    ///
    /// Any other shape, a latent that is NaN or infinite, and an implementation without a decoder.
    fn decode(&self, latents: &Tensor) -> Result<Tensor>;
}

/// Checks that `pixels` is `(B, 3, f H, f W)` with `f = downscale`.
pub(crate) fn check_pixels(pixels: &Tensor, downscale: usize) -> Result<()> {
    match pixels.dims() {
        &[b, 3, h, w] if b * h * w > 0 && h % downscale == 0 && w % downscale == 0 => Ok(()),
        got => bail!("expected pixels (B, 3, H, W) with sides divisible by {downscale}, got {got:?}"),
    }
}

/// Checks that `latents` is `(B, channels, H, W)` and finite, as [`Autoencoder::decode`] must.
///
/// A network may well turn a NaN into a plausible picture, since `relu(NaN)` is 0.
///
/// # Errors
///
/// If it is not.
pub fn check_latents(latents: &Tensor, channels: usize) -> Result<()> {
    match latents.dims() {
        &[b, c, h, w] if c == channels && b * h * w > 0 => {}
        got => bail!("expected latents (B, {channels}, H, W), got {got:?}"),
    }
    // Zero times anything finite is zero; NaN otherwise, which no sum removes.
    let sums = (latents.to_dtype(DType::F32)?.flatten_from(1)? * 0.0)?.sum(1)?.to_vec1::<f32>()?;
    match sums.iter().position(|&sum| sum != 0.0) {
        Some(image) => bail!("image {image} of the batch has a non-finite latent; expected numbers"),
        None => Ok(()),
    }
}

/// Runs `f` on a few images of `xs` at a time, each of `pixels_per_element` pixels per position.
///
/// Input is cast to `dtype`, output to `f32`.
pub(crate) fn in_batches(
    xs: &Tensor,
    dtype: DType,
    pixels_per_element: usize,
    f: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (b, _, h, w) = xs.dims4()?;
    let at_once = (MAX_PIXELS_AT_ONCE / (h * w * pixels_per_element).max(1)).max(1);
    let run = |xs: &Tensor| f(&xs.to_dtype(dtype)?)?.to_dtype(DType::F32);
    if b <= at_once {
        return run(xs);
    }
    let parts: Vec<Tensor> = (0..b)
        .step_by(at_once)
        .map(|first| run(&xs.narrow(0, first, at_once.min(b - first))?))
        .collect::<Result<_>>()?;
    Tensor::cat(&parts, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn batches_are_cut_and_joined_in_order() {
        let xs = random(1, (7, 2, 64, 64));
        let widest = std::cell::Cell::new(0);
        let ys = in_batches(&xs, DType::F32, 1, |xs| {
            widest.set(widest.get().max(xs.dim(0)?));
            xs * 2.0
        })
        .unwrap();
        assert_eq!(widest.get(), 4);
        let difference = (ys - (xs * 2.0).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
        assert_eq!(difference.to_scalar::<f32>().unwrap(), 0.0);
    }

    #[test]
    fn shapes_are_checked() {
        assert!(check_pixels(&random(1, (1, 3, 16, 8)), 8).is_ok());
        for shape in [vec![1, 3, 12, 8], vec![1, 4, 8, 8], vec![3, 8, 8], vec![0, 3, 8, 8], vec![1, 3, 0, 8]]
        {
            assert!(check_pixels(&random(1, shape.clone()), 8).is_err(), "{shape:?}");
        }
        assert!(check_latents(&random(1, (1, 4, 2, 3)), 4).is_ok());
        assert!(check_latents(&random(1, (1, 5, 2, 3)), 4).is_err());
    }

    #[test]
    fn a_non_finite_latent_is_an_error_that_names_the_image() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1f32; 12];
            values[9] = bad;
            let latents = Tensor::from_vec(values, (3, 4, 1, 1), &candle_core::Device::Cpu).unwrap();
            let error = check_latents(&latents, 4).unwrap_err().to_string();
            assert!(error.contains("image 2"), "{error}");
        }
    }
}
