//! The Inception network of 2015, whose features FID and related metrics compare.
//!
//! Follows [`FIDInceptionV3`], the PyTorch port, and keeps the names of its file (`pt_inception-2015-12-05`).
//!
//! [`FIDInceptionV3`]: https://github.com/mseitzer/pytorch-fid/blob/b9c18118d082cbd263c1b8963fc4221dc1cbb659/src/pytorch_fid/inception.py

mod layers;

use candle_core::{DType, Device, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;
use ddt_kernels::{Activation, Window2d};

pub use self::layers::{Branch, FoldedConv, Layers, Mixed, Pool};
use self::layers::{DOWN_3, VALID_3, synthetic_weights};
use crate::layers::{Conv2d, Linear, pool2d};
use crate::load::{LoadError, load_network};
use crate::resize::{Interpolation, resize};

/// Pixels along a side of the images that the network sees.
pub const SIDE: usize = 299;

/// Width of the pooled features.
const FEATURES: usize = 2048;

/// Width of the logits.
pub const CLASSES: usize = 1008;

/// Channels of the 17 x 17 maps that sFID takes.
pub const SPATIAL_CHANNELS: usize = 7;

/// Side of those maps.
pub const SPATIAL_SIDE: usize = 17;

/// Images that pass through the network at once.
const IMAGES_AT_ONCE: usize = 4;

/// Features of some images, `f32`.
#[derive(Debug, Clone)]
pub struct InceptionFeatures {
    /// Means over the last maps, for FID, precision and recall: `(B, 2048)`.
    pub pool: Tensor,
    /// The first 7 channels of `Mixed_6d.branch1x1` after its ReLU, for sFID: `(B, 7, 17, 17)`.
    pub spatial: Tensor,
    /// `fc` without its bias, for the Inception Score: `(B, 1008)`.
    pub logits_unbiased: Tensor,
    /// `fc` with its bias: `(B, 1008)`.
    pub logits: Tensor,
}

impl InceptionFeatures {
    /// The spatial features as sFID's vectors, in the order row, column, channel: `(B, 2023)`.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn spatial_flat(&self) -> Result<Tensor> {
        self.spatial.permute((0, 2, 3, 1))?.flatten_from(1)
    }
}

/// The Inception network that TensorFlow published in December 2015, frozen.
///
/// Differs from torchvision's: 1008 classes, mean pools that do not count padding, a maximum in `Mixed_7c`, and
/// TensorFlow 1's resizing, without half-pixel centres.
/// Batch normalisation (eps 1e-3) is folded into the convolutions.
/// Frozen: on the CPU, images that depend on a variable are an error, so no gradient is lost silently.
#[derive(Debug, Clone)]
pub struct Inception {
    layers: Layers<Conv2d>,
    fc: Linear,
    fc_bias: Tensor,
    dtype: DType,
}

/// Inception's weights, for any implementation: batch normalisation (eps 1e-3) folded into the convolutions.
#[derive(Debug, Clone)]
pub struct FoldedInception {
    /// The convolutions, and the pools between them.
    pub layers: Layers<FoldedConv>,
    /// Weight of the logits' linear layer, (1008, 2048).
    pub fc: Tensor,
    /// (1008).
    pub fc_bias: Tensor,
}

impl FoldedInception {
    /// Reads the weights; `vb` is where `Conv2d_1a_3x3` is.
    ///
    /// # Errors
    /// The first missing or misshapen tensor.
    pub fn new(vb: VarBuilder) -> Result<Self> {
        let at = |name: &str| vb.pp(name);
        let conv = |inp, out, window, name: &str| FoldedConv::read(inp, out, window, at(name));
        let fc = vb.pp("fc");
        Ok(Self {
            layers: Layers {
                stem: vec![
                    conv(3, 32, DOWN_3, "Conv2d_1a_3x3")?,
                    conv(32, 32, VALID_3, "Conv2d_2a_3x3")?,
                    conv(32, 64, Window2d::SAME_3, "Conv2d_2b_3x3")?,
                    conv(64, 80, Window2d::POINT, "Conv2d_3b_1x1")?,
                    conv(80, 192, VALID_3, "Conv2d_4a_3x3")?,
                ],
                middle: vec![
                    Mixed::a(192, 32, &at("Mixed_5b"))?,
                    Mixed::a(256, 64, &at("Mixed_5c"))?,
                    Mixed::a(288, 64, &at("Mixed_5d"))?,
                    Mixed::b(288, &at("Mixed_6a"))?,
                    Mixed::c(768, 128, &at("Mixed_6b"))?,
                    Mixed::c(768, 160, &at("Mixed_6c"))?,
                    Mixed::c(768, 160, &at("Mixed_6d"))?,
                ],
                last: vec![
                    Mixed::c(768, 192, &at("Mixed_6e"))?,
                    Mixed::d(768, &at("Mixed_7a"))?,
                    Mixed::e(1280, Pool::MEAN_SAME, &at("Mixed_7b"))?,
                    Mixed::e(2048, Pool::MAX_SAME, &at("Mixed_7c"))?,
                ],
            },
            fc: fc.get((CLASSES, FEATURES), "weight")?,
            fc_bias: fc.get(CLASSES, "bias")?,
        })
    }

    /// Reads the weights, in `f32`, from a source that holds them and no others but the counters of training batches
    /// (`*.num_batches_tracked`).
    ///
    /// # Errors
    /// [`FileError::Mismatch`](ddt_files::FileError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load(
        source: &(impl TensorSource + Sync + ?Sized),
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let wanted = |name: &str| !name.ends_with(".num_batches_tracked");
        load_network(source, DType::F32, device, wanted, Self::new)
    }

    /// Synthetic weights, computed from their names only: features mean nothing, but every implementation must
    /// compute the same ones, as fast.
    ///
    /// # Errors
    /// Too little memory.
    pub fn synthetic(device: &Device) -> Result<Self> {
        Self::new(synthetic_weights(device))
    }
}

impl Inception {
    /// Builds the network; `vb` is where `Conv2d_1a_3x3` is.
    ///
    /// # Errors
    /// The first missing or misshapen tensor.
    pub fn new(vb: VarBuilder) -> Result<Self> {
        Self::from_folded(&FoldedInception::new(vb)?)
    }

    /// Builds the network from its weights.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn from_folded(weights: &FoldedInception) -> Result<Self> {
        Ok(Self {
            layers: weights.layers.try_map(relu_conv)?,
            fc: Linear::of(&weights.fc, None)?,
            fc_bias: weights.fc_bias.to_dtype(DType::F32)?,
            dtype: weights.fc.dtype(),
        })
    }

    /// Builds the network, in `f32`, as [`FoldedInception::load`] reads its weights.
    ///
    /// # Errors
    /// [`FileError::Mismatch`](ddt_files::FileError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load(
        source: &(impl TensorSource + Sync + ?Sized),
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        Ok(Self::from_folded(&FoldedInception::load(source, device)?)?)
    }

    /// Features of images of any size.
    ///
    /// Every image is resized to 299 x 299 by TensorFlow 1's bilinear rule and becomes `(x - 128) / 128`.
    /// An image's features do not depend on the batch it is in.
    ///
    /// # Shapes
    /// `pixels: (B, 3, H, W)`, `u8` or any float type, from 0 to 255; see [`InceptionFeatures`].
    ///
    /// # Errors
    /// Any other shape.
    pub fn forward(&self, pixels: &Tensor) -> Result<InceptionFeatures> {
        let b = images_of(pixels)?;
        let (mut pools, mut spatials) = (Vec::new(), Vec::new());
        for first in (0..b).step_by(IMAGES_AT_ONCE) {
            let (pool, spatial) = self.maps(&pixels.narrow(0, first, IMAGES_AT_ONCE.min(b - first))?)?;
            pools.push(pool);
            spatials.push(spatial);
        }
        let pool = Tensor::cat(&pools, 0)?;
        let logits_unbiased = self.fc.forward(&pool.to_dtype(self.dtype)?)?.to_dtype(DType::F32)?;
        Ok(InceptionFeatures {
            logits: logits_unbiased.broadcast_add(&self.fc_bias)?,
            logits_unbiased,
            pool,
            spatial: Tensor::cat(&spatials, 0)?,
        })
    }

    /// Pooled features `(B, 2048)` and spatial ones `(B, 7, 17, 17)`, in `f32`.
    fn maps(&self, pixels: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut xs = prepare(pixels)?.to_dtype(self.dtype)?; // (B, H, W, C) from here on
        for (i, conv) in self.layers.stem.iter().enumerate() {
            if i == 3 {
                xs = Pool::MAX_DOWN.forward(&xs)?;
            }
            xs = conv.forward(&xs)?;
        }
        xs = Pool::MAX_DOWN.forward(&xs)?;
        for mixed in &self.layers.middle {
            xs = mixed.forward(&xs)?;
        }
        // The first branch comes first.
        let spatial = xs.narrow(3, 0, SPATIAL_CHANNELS)?.permute((0, 3, 1, 2))?.contiguous()?;
        for mixed in &self.layers.last {
            xs = mixed.forward(&xs)?;
        }
        let pooled = xs.to_dtype(DType::F32)?.flatten(1, 2)?.mean(1)?;
        Ok((pooled, spatial.to_dtype(DType::F32)?))
    }
}

fn relu_conv(conv: &FoldedConv) -> Result<Conv2d> {
    Ok(Conv2d::of(&conv.weight, Some(&conv.bias), conv.window)?.then(Activation::Relu).rounded())
}

impl Module for Pool {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        pool2d(xs, self.window, self.mean)
    }
}

impl Module for Mixed<Conv2d> {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut results = Vec::new();
        for branch in &self.0 {
            let mut xs = match branch.pool {
                Some(pool) => pool.forward(xs)?,
                None => xs.clone(),
            };
            for conv in &branch.convs {
                xs = conv.forward(&xs)?;
            }
            if branch.last.is_empty() {
                results.push(xs);
                continue;
            }
            for conv in &branch.last {
                results.push(conv.forward(&xs)?);
            }
        }
        Tensor::cat(&results, 3)
    }
}

/// Images as the network sees them: 299 x 299 by TensorFlow 1's bilinear rule, and `(x - 128) / 128`.
///
/// # Shapes
/// `(B, 3, H, W)`, `u8` or any float type, from 0 to 255, to `(B, 299, 299, 3)` in `f32`.
///
/// # Errors
/// Any other shape.
pub fn prepare(pixels: &Tensor) -> Result<Tensor> {
    images_of(pixels)?;
    let (b, c, h, w) = pixels.dims4()?;
    let planes = pixels.to_dtype(DType::F32)?.reshape((b * c, h, w))?;
    let planes = resize(&planes, (SIDE, SIDE), Interpolation::BilinearTf1)?;
    let images = planes.affine(1.0 / 128.0, -1.0)?.reshape((b, c, SIDE, SIDE))?;
    images.permute((0, 2, 3, 1))?.contiguous()
}

/// The number of images, if they are `(B, 3, H, W)` and not empty.
fn images_of(pixels: &Tensor) -> Result<usize> {
    match *pixels.dims() {
        [b, 3, h, w] if b * h * w > 0 => Ok(b),
        _ => bail!("expected pixels (B, 3, H, W), not empty, got {:?}", pixels.shape()),
    }
}
