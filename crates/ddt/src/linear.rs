//! A decoder that costs next to nothing: pixels as a linear function of latents, for previews.

use candle_core::{DType, Device, Tensor};
use ddt_flow::NoiseSource;
use ddt_picture::Rgb8;

use crate::{config::Rounding, decoding::decode, error::Result, pipeline::Pipeline};

/// Images at the resolution of the latents, by least squares from a few decoded latents.
///
/// ```text
/// rgb = (z, 1) A,   A = argmin sum |(z, 1) A - mean of the pixels of z's position|^2
/// ```
#[derive(Debug, Clone)]
pub struct LinearDecoder {
    /// `(C + 1, 3)`
    weights: Tensor,
}

impl LinearDecoder {
    /// Fits the decoder of a pipeline, which decodes at least 1024 positions for it: one image of 256 px.
    ///
    /// # Errors
    /// As [`Pipeline::decode`].
    pub fn fit(pipeline: &Pipeline) -> Result<Self> {
        let (channels, height, width) = pipeline.latent_shape();
        // Noise at half the resolution: areas of one colour, as pictures have.
        let (rows, columns) = (height.div_ceil(2), width.div_ceil(2));
        let samples: Vec<u64> = (0..1024u64.div_ceil((height * width) as u64)).collect();
        let noise = NoiseSource::Counter.batch(0, &samples, (channels, rows, columns), &Device::Cpu)?;
        let latents = noise.upsample_nearest2d(2 * rows, 2 * columns)?;
        let latents = latents.narrow(2, 0, height)?.narrow(3, 0, width)?.contiguous()?;
        let mut means = Vec::new();
        for image in pipeline.decode(&latents)? {
            let (tall, wide) = (image.height() as usize, image.width() as usize);
            let pixels = Tensor::from_slice(image.as_bytes(), (1, tall, wide, 3), &Device::Cpu)?;
            let pixels = pixels.to_dtype(DType::F32)?.affine(1.0 / 127.5, -1.0)?.permute((0, 3, 1, 2))?;
            means.push(pixels.contiguous()?.avg_pool2d((tall / height, wide / width))?);
        }
        let means = Tensor::cat(&means, 0)?;
        Self::least_squares(&latents, &means)
    }

    /// The least squares from latents `(B, C, H, W)` to colours `(B, 3, H, W)` in [-1, 1].
    fn least_squares(latents: &Tensor, colours: &Tensor) -> Result<Self> {
        let (x, y) = (with_one(&positions(latents)?)?, positions(colours)?);
        let products = |y: &Tensor| x.t()?.matmul(y)?.to_dtype(DType::F64)?.to_vec2::<f64>();
        let (mut square, mut right) = (products(&x)?, products(&y)?);
        for (at, row) in square.iter_mut().enumerate() {
            // A ridge: a channel that does not vary has no share in the colours.
            row[at] = row[at] * (1.0 + 1e-6) + 1e-6;
        }
        eliminate(&mut square, &mut right);
        let weights = Tensor::new(right, &Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(Self { weights })
    }

    /// Latents to small images.
    ///
    /// # Shapes
    /// `(B, C, H, W)` -> B images of H x W
    ///
    /// # Errors
    /// Another number of channels; latents that are NaN or infinite.
    pub fn images(&self, latents: &Tensor) -> Result<Vec<Rgb8>> {
        let (batch, _, height, width) = latents.dims4()?;
        let colours = with_one(&positions(latents)?)?.matmul(&self.weights)?;
        let pixels = colours.reshape((batch, height, width, 3))?.permute((0, 3, 1, 2))?;
        decode(&ddt_adapters::PixelSpace, None, &pixels, Rounding::Nearest)
    }
}

/// `(B, C, H, W) -> (B H W, C)`
fn positions(x: &Tensor) -> candle_core::Result<Tensor> {
    x.permute((0, 2, 3, 1))?.flatten_to(2)?.contiguous()
}

/// `(N, C) -> (N, C + 1)`
fn with_one(x: &Tensor) -> candle_core::Result<Tensor> {
    Tensor::cat(&[x, &Tensor::ones((x.dim(0)?, 1), x.dtype(), x.device())?], 1)
}

/// Solves `square X = right` for a positive definite matrix, which needs no pivots; `right` becomes X.
fn eliminate(square: &mut [Vec<f64>], right: &mut [Vec<f64>]) {
    for at in 0..square.len() {
        let pivot = square[at][at];
        square[at].iter_mut().chain(&mut right[at]).for_each(|it| *it /= pivot);
        let (row, solution) = (square[at].clone(), right[at].clone());
        for other in (0..square.len()).filter(|it| *it != at) {
            let factor = square[other][at];
            for (it, value) in
                square[other].iter_mut().zip(&row).chain(right[other].iter_mut().zip(&solution))
            {
                *it -= factor * value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_relation_is_found() {
        let latents = NoiseSource::Counter.batch(1, &[0], (4, 8, 8), &Device::Cpu).unwrap();
        let truth: Vec<f32> = (0..15).map(|it| (it as f32 - 7.0) / 20.0).collect();
        let truth = LinearDecoder { weights: Tensor::from_vec(truth, (5, 3), &Device::Cpu).unwrap() };
        let colours = with_one(&positions(&latents).unwrap()).unwrap().matmul(&truth.weights).unwrap();
        let colours = colours.reshape((1, 8, 8, 3)).unwrap().permute((0, 3, 1, 2)).unwrap();
        let found = LinearDecoder::least_squares(&latents, &colours).unwrap();
        let error = (found.weights - &truth.weights).unwrap().abs().unwrap().max_all().unwrap();
        assert!(error.to_scalar::<f32>().unwrap() < 1e-4);
        assert!(truth.images(&latents.narrow(1, 0, 3).unwrap()).is_err());
    }

    #[cfg(feature = "demo")]
    #[test]
    fn previews_look_like_the_image() {
        let pipeline = Pipeline::demo().unwrap();
        let linear = LinearDecoder::fit(&pipeline).unwrap();
        let images = crate::Image::spread(4, 10, 0);
        let noise = pipeline.noise(&images, 3, NoiseSource::Counter).unwrap();
        let options = ddt_model::SampleOptions {
            grid: ddt_flow::TimeGrid::new(8, None, 1.0).unwrap(),
            ..pipeline.sample_options(None)
        };
        let mut go_on = |_: &crate::Progress<'_>| std::ops::ControlFlow::Continue(());
        let sampled = pipeline.sample_with(&images, &noise, &options, &mut go_on).unwrap();
        let (exact, small) =
            (pipeline.decode(&sampled.latents).unwrap(), linear.images(&sampled.latents).unwrap());
        // Mean brightness of a position, exact and linear, against the spread between positions.
        let (mut error, mut spread) = (0.0, 0.0);
        for (exact, small) in exact.iter().zip(&small) {
            let factor = exact.width() / small.width();
            for (x, y) in (0..small.width()).flat_map(|x| (0..small.height()).map(move |y| (x, y))) {
                let of = |it: [u8; 3]| it.iter().map(|it| f64::from(*it)).sum::<f64>() / 3.0;
                let inside = (0..factor * factor).map(|i| (factor * x + i % factor, factor * y + i / factor));
                let mean = inside.map(|(x, y)| of(exact.pixel(x, y).unwrap())).sum::<f64>()
                    / f64::from(factor * factor);
                error += (mean - of(small.pixel(x, y).unwrap())).powi(2);
                spread += (mean - 127.5).powi(2);
            }
        }
        assert!(error < 0.5 * spread, "{error} of {spread}");
    }
}
