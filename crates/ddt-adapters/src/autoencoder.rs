//! Between pixels and latents: the traits that every autoencoder implements, their pair, and how a large batch passes
//! through one.

use candle_core::{DType, Result, Tensor, bail};

/// Pixels that pass through a network at once, if they are not one image: 16 images of 32 px.
const MAX_PIXELS_AT_ONCE: usize = 128 * 128;

/// The latents that a network is trained on, and their size relative to the pixels.
///
/// Latents are as the network sees them: scale and shift belong to the implementation.
pub trait LatentSpace {
    /// Channels of the latents.
    fn latent_channels(&self) -> usize;

    /// Pixels along a side of one latent position.
    fn downscale(&self) -> usize;
}

/// A frozen encoder: pixels to latents.
///
/// Pixels are `f32` in `[-1, 1]` for every implementation, whatever the network behind it uses.
/// A few images are encoded at a time, so memory does not grow with the batch.
/// Frozen: on the CPU, pixels that depend on a variable are an error, so no gradient is lost silently.
///
/// Shape letters: `H W` height and width of the latents, `f` the [`downscale`](LatentSpace::downscale),
/// `C` the [`latent_channels`](LatentSpace::latent_channels).
pub trait Encode: LatentSpace {
    /// Pixels to latents, deterministically (a mean where there is a distribution).
    ///
    /// # Shapes
    /// `(B, 3, f H, f W) -> (B, C, H, W)`
    ///
    /// # Errors
    /// Any other shape.
    fn encode(&self, pixels: &Tensor) -> Result<Tensor>;
}

/// A frozen decoder: latents to pixels.
///
/// Pixels are `f32`, mostly in `[-1, 1]`, and not clamped. For the rest as [`Encode`].
pub trait Decode: LatentSpace {
    /// Latents to pixels; the result is a view of memory in the order (B, f H, f W, 3), that of images.
    ///
    /// # Shapes
    /// `(B, C, H, W) -> (B, 3, f H, f W)`
    ///
    /// # Errors
    /// Any other shape, and a latent that is NaN or infinite.
    fn decode(&self, latents: &Tensor) -> Result<Tensor>;
}

/// Both halves of an autoencoder.
#[derive(Debug, Clone)]
pub struct Autoencoder<E, D> {
    /// Pixels to latents.
    pub encoder: E,
    /// Latents to pixels.
    pub decoder: D,
}

impl<E, D: LatentSpace> LatentSpace for Autoencoder<E, D> {
    fn latent_channels(&self) -> usize {
        self.decoder.latent_channels()
    }

    fn downscale(&self) -> usize {
        self.decoder.downscale()
    }
}

impl<E: Encode, D: LatentSpace> Encode for Autoencoder<E, D> {
    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        self.encoder.encode(pixels)
    }
}

impl<E, D: Decode> Decode for Autoencoder<E, D> {
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decoder.decode(latents)
    }
}

/// Pixel space: the identity, for networks that generate pixels directly. 3 channels, no downscaling.
///
/// Takes pixels of any floating point type and gives `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelSpace;

impl LatentSpace for PixelSpace {
    fn latent_channels(&self) -> usize {
        3
    }

    fn downscale(&self) -> usize {
        1
    }
}

impl Encode for PixelSpace {
    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        check_pixels(pixels, 1)?;
        pixels.to_dtype(DType::F32)
    }
}

impl Decode for PixelSpace {
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.encode(latents)
    }
}

/// Checks that `pixels` is `(B, 3, f H, f W)` with `f = downscale`.
pub(crate) fn check_pixels(pixels: &Tensor, downscale: usize) -> Result<()> {
    match pixels.dims() {
        &[b, 3, h, w] if b * h * w > 0 && h % downscale == 0 && w % downscale == 0 => Ok(()),
        got => bail!("expected pixels (B, 3, H, W) with sides divisible by {downscale}, got {got:?}"),
    }
}

/// Checks that `latents` is `(B, channels, H, W)` and finite, as [`Decode::decode`] must.
///
/// A network may well turn a NaN into a plausible picture, since `relu(NaN)` is 0.
///
/// # Errors
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

/// Runs `f`, which takes and gives `(B, H, W, C)`, on a few images of `xs: (B, C, H, W)` at a time, each of
/// `pixels_per_position` pixels per position.
///
/// Input is cast to `dtype`, output to `f32`: `(B, C', H', W')`, a view of memory in the order of `f`.
pub(crate) fn in_batches(
    xs: &Tensor,
    dtype: DType,
    pixels_per_position: usize,
    f: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (b, _, h, w) = xs.dims4()?;
    let at_once = (MAX_PIXELS_AT_ONCE / (h * w * pixels_per_position).max(1)).max(1);
    let run = |xs: &Tensor| {
        let xs = xs.permute((0, 2, 3, 1))?.contiguous()?; // (B, H, W, C)
        f(&xs.to_dtype(dtype)?)?.to_dtype(DType::F32)
    };
    let parts: Vec<Tensor> = (0..b)
        .step_by(at_once)
        .map(|first| run(&xs.narrow(0, first, at_once.min(b - first))?))
        .collect::<Result<_>>()?;
    let ys = if let [all] = parts.as_slice() { all.clone() } else { Tensor::cat(&parts, 0)? };
    ys.permute((0, 3, 1, 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, rel_rms};

    #[test]
    fn batches_are_cut_and_joined_in_order_with_channels_last() {
        let xs = random(1, (7, 2, 64, 64));
        let widest = std::cell::Cell::new(0);
        let ys = in_batches(&xs, DType::F32, 1, |xs| {
            assert_eq!(xs.dims()[1..], [64, 64, 2]);
            widest.set(widest.get().max(xs.dim(0)?));
            xs * 2.0
        })
        .unwrap();
        assert_eq!(widest.get(), 4);
        assert_eq!(rel_rms(&ys, &(xs * 2.0).unwrap()), 0.0);
        assert!(ys.permute((0, 2, 3, 1)).unwrap().is_contiguous());
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

    #[test]
    fn pixel_space_passes_pixels_and_refuses_other_shapes() {
        let pixels = random(1, (2, 3, 5, 4));
        assert_eq!(rel_rms(&PixelSpace.decode(&PixelSpace.encode(&pixels).unwrap()).unwrap(), &pixels), 0.0);
        assert!(PixelSpace.decode(&random(1, (2, 4, 5, 4))).is_err());
    }
}
