//! The network.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use ddt_blocks::{Linear, RmsNorm};
use ddt_files::{Checkpoint, LoadOptions, load_exact};
use ddt_kernels::{neighbours, silu};
use ddt_train::Parameters;

/// Classes it tells apart.
pub const CLASSES: usize = 10;

/// Channels of its features.
pub const FEATURES: usize = 192;

/// Pixels along a side of its images.
pub const SIDE: usize = 32;

/// A residual network for images of 32 pixels, 0.7 million parameters:
///
/// ```text
/// conv 32, pool, conv 64, residual, pool, conv 128, residual, pool, conv 192, norm, mean -> features -> linear
/// ```
///
/// Convolutions are 3 x 3, pools halve by the mean, a residual is `x + conv(silu(conv(silu(norm(x)))))`.
#[derive(Debug, Clone)]
pub struct Classifier {
    convs: [Conv; 4],
    residuals: [Residual; 2],
    norm: RmsNorm,
    head: Linear,
}

/// What it makes of some images.
#[derive(Debug, Clone)]
pub struct Classified {
    /// `(B, 192)`, what distances are measured between.
    pub features: Tensor,
    /// `(B, 10)`.
    pub logits: Tensor,
}

impl Classifier {
    /// Parameters `convs.i`, `residuals.i`, `norm` and `head`.
    ///
    /// # Errors
    ///
    /// When `vb` lacks a parameter.
    pub fn new(vb: VarBuilder) -> candle_core::Result<Self> {
        let conv = |i: usize, from, to| Conv::new(from, to, vb.pp("convs").pp(i));
        let residual = |i: usize, width| Residual::new(width, vb.pp("residuals").pp(i));
        Ok(Self {
            convs: [conv(0, 3, 32)?, conv(1, 32, 64)?, conv(2, 64, 128)?, conv(3, 128, FEATURES)?],
            residuals: [residual(0, 64)?, residual(1, 128)?],
            norm: RmsNorm::new(FEATURES, vb.pp("norm"))?,
            head: Linear::new(FEATURES, CLASSES, vb.pp("head"))?,
        })
    }

    /// Reads it from a file, to compute in f32.
    ///
    /// # Errors
    ///
    /// A file that is damaged or holds another network.
    pub fn read(file: &Checkpoint) -> Result<Self> {
        let (_, parameters) = Parameters::create(0, DType::F32, &Device::Cpu, Self::new)?;
        let shape = |(name, var): (&str, &candle_core::Var)| (name.to_owned(), var.dims().to_vec());
        let expected: Vec<_> = parameters.iter().map(shape).collect();
        let options = LoadOptions::new(&Device::Cpu).cast(DType::F32);
        let weights = load_exact(file, &expected, &options)?.into_iter().collect();
        Ok(Self::new(VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu))?)
    }

    /// [`read`](Self::read) from a path.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(&Checkpoint::open(path)?)
    }

    /// # Shapes
    ///
    /// `pixels: (B, 3, 32, 32)` in `[-1, 1]`.
    ///
    /// # Errors
    ///
    /// Any other shape.
    pub fn forward(&self, pixels: &Tensor) -> candle_core::Result<Classified> {
        let xs = pixels.permute((0, 2, 3, 1))?.contiguous()?; // (B, H, W, C)
        let xs = pool(&silu(&self.convs[0].forward(&xs)?)?)?;
        let xs = pool(&self.residuals[0].forward(&self.convs[1].forward(&xs)?)?)?;
        let xs = pool(&self.residuals[1].forward(&self.convs[2].forward(&xs)?)?)?;
        let xs = silu(&normed(&self.norm, &self.convs[3].forward(&xs)?)?)?;
        let features = xs.mean((1, 2))?;
        let logits = self.head.forward(&features)?;
        Ok(Classified { features, logits })
    }
}

#[derive(Debug, Clone)]
struct Conv(Linear);

impl Conv {
    fn new(from: usize, to: usize, vb: VarBuilder) -> candle_core::Result<Self> {
        Ok(Self(Linear::new(9 * from, to, vb)?))
    }

    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.0.forward(&neighbours(xs)?)
    }
}

#[derive(Debug, Clone)]
struct Residual {
    norm: RmsNorm,
    convs: [Conv; 2],
}

impl Residual {
    fn new(width: usize, vb: VarBuilder) -> candle_core::Result<Self> {
        let conv = |i: usize| Conv::new(width, width, vb.pp("convs").pp(i));
        Ok(Self { norm: RmsNorm::new(width, vb.pp("norm"))?, convs: [conv(0)?, conv(1)?] })
    }

    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let ys = self.convs[0].forward(&silu(&normed(&self.norm, xs)?)?)?;
        xs + self.convs[1].forward(&silu(&ys)?)?
    }
}

/// The norm in one pass: with nothing to shift or scale.
fn normed(norm: &RmsNorm, xs: &Tensor) -> candle_core::Result<Tensor> {
    let (b, h, w, c) = xs.dims4()?;
    let none = Tensor::zeros((b, 1, 2 * c), xs.dtype(), xs.device())?;
    norm.forward_modulated(&xs.reshape((b, h * w, c))?, &none)?.reshape((b, h, w, c))
}

/// The mean of each 2 x 2 square.
fn pool(xs: &Tensor) -> candle_core::Result<Tensor> {
    let (b, h, w, c) = xs.dims4()?;
    xs.reshape((b, h / 2, 2, w / 2, 2 * c))?.mean(2)?.reshape((b, h / 2, w / 2, 2, c))?.mean(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_means_of_squares() {
        let xs = Tensor::arange(0f32, 32.0, &Device::Cpu).unwrap().reshape((1, 4, 4, 2)).unwrap();
        let ys = pool(&xs).unwrap();
        // Channel 0 of the first square: 0, 2, 8, 10.
        assert_eq!(ys.dims(), [1, 2, 2, 2]);
        assert_eq!(ys.flatten_all().unwrap().to_vec1::<f32>().unwrap()[..2], [5.0, 6.0]);
    }
}
