//! A small convolutional network that tells CIFAR-10's classes apart.
//!
//! Inception's weights have to be downloaded; these come with the program, and [`ClassifierTraining`] trains them.
//! Distances in its feature space compare this project's samples with each other and with photos, and with nothing
//! measured elsewhere.
//!
//! [`ClassifierTraining`]: crate::ClassifierTraining

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use ddt::{
    blocks::{Linear, RmsNorm},
    files::{Checkpoint, LoadOptions, load_exact, sha256},
    kernels::{neighbours, silu},
};
use ddt_train::Parameters;

/// A residual network for images of 32 x 32 pixels, 0.7 million parameters:
///
/// ```text
/// conv 32, pool, conv 64, residual, pool, conv 128, residual, pool, conv 192, norm, mean -> features -> linear
/// ```
///
/// Convolutions are 3 x 3, pools take the mean of 2 x 2, a residual is `x + conv(silu(conv(silu(norm(x)))))`.
#[derive(Debug, Clone)]
pub struct Classifier {
    convs: [Conv; 4],
    residuals: [Residual; 2],
    norm: RmsNorm,
    head: Linear,
}

/// Features and logits of some images.
#[derive(Debug, Clone)]
pub struct Classified {
    /// `(B, 192)`, between which distances are measured.
    pub features: Tensor,
    /// `(B, 10)`.
    pub logits: Tensor,
}

impl Classifier {
    /// Number of classes.
    pub const CLASSES: usize = 10;

    /// Channels of the features.
    pub const FEATURES: usize = 192;

    /// Side of an image, in pixels.
    pub const SIDE: usize = 32;

    /// The classifier in a file, or the bundled one; and the SHA-256 of its file.
    ///
    /// # Errors
    /// A file that is absent, damaged or holds another network.
    pub fn load(path: Option<&Path>) -> Result<(Self, String)> {
        match path {
            None => {
                let file = Checkpoint::from_bytes(ddt_demo::CLASSIFIER, "the bundled classifier")?;
                Ok((Self::read(&file)?, sha256(ddt_demo::CLASSIFIER)))
            }
            Some(path) => {
                let shown = || format!("the classifier {}", path.display());
                let file = Checkpoint::open(path).with_context(shown)?;
                Ok((Self::read(&file).with_context(shown)?, ddt::sha256_of(path)?))
            }
        }
    }

    /// Parameters `convs.i`, `residuals.i`, `norm` and `head`.
    ///
    /// # Errors
    /// When `vb` lacks a parameter.
    pub fn new(vb: VarBuilder) -> candle_core::Result<Self> {
        let conv = |i: usize, from, to| Conv::new(from, to, vb.pp("convs").pp(i));
        let residual = |i: usize, width| Residual::new(width, vb.pp("residuals").pp(i));
        Ok(Self {
            convs: [conv(0, 3, 32)?, conv(1, 32, 64)?, conv(2, 64, 128)?, conv(3, 128, Self::FEATURES)?],
            residuals: [residual(0, 64)?, residual(1, 128)?],
            norm: RmsNorm::new(Self::FEATURES, vb.pp("norm"))?,
            head: Linear::new(Self::FEATURES, Self::CLASSES, vb.pp("head"))?,
        })
    }

    /// Reads it from a file, to compute in f32.
    ///
    /// # Errors
    /// A file that is damaged or holds another network.
    pub fn read(file: &Checkpoint) -> Result<Self> {
        let (_, parameters) = Parameters::create(0, DType::F32, &Device::Cpu, Self::new)?;
        let shape = |(name, var): (&str, &candle_core::Var)| (name.to_owned(), var.dims().to_vec());
        let expected: Vec<_> = parameters.iter().map(shape).collect();
        let options = LoadOptions::new(&Device::Cpu).cast(DType::F32);
        let weights = load_exact(file, &expected, &options)?.into_iter().collect();
        Ok(Self::new(VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu))?)
    }

    /// Classifies images.
    ///
    /// # Shapes
    /// `pixels: (B, 3, 32, 32)` in [-1, 1]
    ///
    /// # Errors
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

/// A 3 x 3 convolution, as a linear layer on each pixel and its neighbours.
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

/// The norm as one operation: with nothing to shift or scale.
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

    /// Logits of the bundled classifier for [`waves`], by this implementation.
    const WAVE_LOGITS: [[f32; 10]; 2] = [
        [0.989, -1.839, 3.477, 0.025, -2.857, -1.326, 0.029, -0.759, -3.185, -1.547],
        [1.324, -1.957, 3.075, 0.073, -2.689, -0.847, -0.413, -1.394, -2.976, -2.407],
    ];

    /// A wave of its own frequency and direction in each image and channel, in `[-1, 1]`.
    fn waves() -> Tensor {
        let value = |i: usize| {
            let (image, channel, row, column) = (i / 3072, i / 1024 % 3, i / 32 % 32, i % 32);
            let phase = (1 + image) * row + (2 * channel + 1) * column;
            (phase as f32 * 0.11 + image as f32).sin()
        };
        let values: Vec<f32> = (0..2 * 3072).map(value).collect();
        Tensor::from_vec(values, (2, 3, 32, 32), &Device::Cpu).unwrap()
    }

    #[test]
    fn the_classifier_sees_what_it_saw_when_it_was_made() {
        let (classifier, sha256) = Classifier::load(None).unwrap();
        let seen = classifier.forward(&waves()).unwrap();
        assert_eq!(seen.features.dims(), [2, Classifier::FEATURES]);
        let logits = seen.logits.to_vec2::<f32>().unwrap();
        // Recorded to three decimals; sums in another order differ in the last bits.
        for (got, expected) in logits.iter().flatten().zip(WAVE_LOGITS.iter().flatten()) {
            assert!((got - expected).abs() < 2e-3, "expected {WAVE_LOGITS:?}, got {logits:?}");
        }
        assert_eq!(sha256.len(), 64);
        let file = Checkpoint::from_bytes(ddt_demo::CLASSIFIER, "the bundled classifier").unwrap();
        assert!(file.metadata()["test_accuracy"].parse::<f64>().unwrap() >= 0.75);
    }
}
