//! Pixels to a distribution of latents.

use candle_core::{DType, Device, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;
use ddt_kernels::{Activation, Window2d};

use super::blocks::{MidBlock, Stage, norm};
use super::config::KlConfig;
use crate::autoencoder::{Encode, LatentSpace, check_pixels, in_batches};
use crate::layers::{Conv2d, GroupNorm, stream_dtype, unrounded};
use crate::load::{LoadError, load_network};

/// The encoder of Stable Diffusion's autoencoder; usable without the decoder.
///
/// ```text
/// conv_in, down_blocks, mid_block, silu(conv_norm_out), conv_out, quant_conv
/// ```
///
/// Multiplies in the type of its weights, sums in `f32`; takes and gives `f32`.
#[derive(Debug, Clone)]
pub struct KlEncoder {
    conv_in: Conv2d,
    down_blocks: Vec<Stage>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    quant_conv: Conv2d,
    cfg: KlConfig,
    /// Dtype of the tensors between layers.
    dtype: DType,
}

impl KlEncoder {
    /// Builds the encoder; `vb` is the root of the file's names, above `encoder.` and `quant_conv.`.
    ///
    /// # Errors
    /// A configuration that [`KlConfig::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &KlConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate()?;
        let (top, bottom, moments) = (cfg.top_channels(), cfg.bottom_channels(), 2 * cfg.latent_channels);
        let quant_conv = Conv2d::new(moments, moments, Window2d::POINT, unrounded(&vb).pp("quant_conv"))?;
        let (dtype, vb) = (stream_dtype(&vb), vb.pp("encoder"));
        let ends = unrounded(&vb);
        let last = cfg.block_out_channels.len() - 1;
        let mut inp = top;
        let mut down_blocks = Vec::new();
        for (i, &channels) in cfg.block_out_channels.iter().enumerate() {
            let vb = vb.pp("down_blocks").pp(i);
            let stage = Stage::new(cfg, inp, channels, cfg.layers_per_block, vb.clone())?;
            inp = channels;
            // Padded on the right and below only.
            let window = Window2d { pad_before: (0, 0), ..Window2d::new((3, 3), 2, (1, 1)) };
            down_blocks.push(if i == last {
                stage
            } else {
                stage.then(Conv2d::new(channels, channels, window, vb.pp("downsamplers.0.conv"))?)
            });
        }
        Ok(Self {
            conv_in: Conv2d::new(3, top, Window2d::SAME_3, ends.pp("conv_in"))?,
            down_blocks,
            mid_block: MidBlock::new(cfg, vb.pp("mid_block"))?,
            conv_norm_out: norm(cfg, bottom, ends.pp("conv_norm_out"))?.then(Activation::Silu),
            conv_out: Conv2d::new(bottom, moments, Window2d::SAME_3, ends.pp("conv_out"))?,
            quant_conv,
            cfg: cfg.clone(),
            dtype,
        })
    }

    /// Builds the encoder in `dtype` from a source that holds its tensors; `decoder.*` and `post_quant_conv.*` may
    /// be there too, and are not read.
    ///
    /// # Errors
    /// [`FileError::Mismatch`](ddt_files::FileError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load(
        cfg: &KlConfig,
        source: &(impl TensorSource + Sync + ?Sized),
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let wanted = |name: &str| !name.starts_with("decoder.") && !name.starts_with("post_quant_conv.");
        load_network(source, dtype, device, wanted, |vb| Self::new(cfg, vb))
    }

    /// The configuration that it was built with.
    pub fn config(&self) -> &KlConfig {
        &self.cfg
    }

    /// The distribution of the unscaled latents of some images.
    ///
    /// # Shapes
    /// `pixels: (B, 3, f H, f W)` in `[-1, 1]`; mean and log-variance `(B, C, H, W)`, `f32`.
    ///
    /// # Errors
    /// Any other shape.
    pub fn posterior(&self, pixels: &Tensor) -> Result<Posterior> {
        check_pixels(pixels, self.downscale())?;
        Posterior::from_moments(&in_batches(pixels, self.dtype, 1, |xs| self.moments(xs))?)
    }

    /// Scaled latents sampled from the posterior, as a network is trained on them.
    ///
    /// # Shapes
    /// `pixels: (B, 3, f H, f W)`, `noise: (B, C, H, W)` standard normal, `-> (B, C, H, W)`
    ///
    /// # Errors
    /// Any other shape.
    pub fn encode_sampled(&self, pixels: &Tensor, noise: &Tensor) -> Result<Tensor> {
        self.posterior(pixels)?.sample(noise)? * self.cfg.scaling_factor
    }

    /// `(B, f H, f W, 3) -> (B, H, W, 2 C)`
    fn moments(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut xs = self.conv_in.forward(pixels)?;
        for stage in &self.down_blocks {
            xs = stage.run(xs)?;
        }
        let xs = self.conv_norm_out.forward(&self.mid_block.forward(&xs)?)?;
        self.quant_conv.forward(&self.conv_out.forward(&xs)?)
    }
}

impl LatentSpace for KlEncoder {
    fn latent_channels(&self) -> usize {
        self.cfg.latent_channels
    }

    fn downscale(&self) -> usize {
        self.cfg.downscale()
    }
}

impl Encode for KlEncoder {
    /// The posterior's mean, scaled; see [`KlEncoder::encode_sampled`] for a sample.
    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        self.posterior(pixels)?.mean * self.cfg.scaling_factor
    }
}

/// A normal distribution over unscaled latents, independent in every element.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Mean, `(B, C, H, W)`.
    pub mean: Tensor,
    /// Logarithm of the variance, `(B, C, H, W)`, in `[-30, 20]`.
    pub logvar: Tensor,
}

impl Posterior {
    /// Splits `(B, 2 C, H, W)` into mean and log-variance.
    fn from_moments(moments: &Tensor) -> Result<Self> {
        let halves = moments.chunk(2, 1)?;
        let [mean, logvar] = halves.as_slice() else {
            bail!("expected mean and log-variance (B, 2 C, H, W), got {:?}", moments.shape());
        };
        Ok(Self { mean: mean.contiguous()?, logvar: logvar.contiguous()?.clamp(-30f32, 20f32)? })
    }

    /// A sample: `mean + exp(logvar / 2) * noise`, with `noise` standard normal `(B, C, H, W)`.
    ///
    /// # Errors
    /// Noise of another shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        if noise.dims() != self.mean.dims() {
            bail!("expected noise {:?}, got {:?}", self.mean.shape(), noise.shape());
        }
        let std = (&self.logvar / 2.0)?.exp()?;
        &self.mean + (std * noise.to_dtype(self.mean.dtype())?)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, rel_rms};

    #[test]
    fn a_sample_is_mean_plus_std_times_noise() {
        let moments = Tensor::new(&[[[[3f32]], [[-1.0]], [[2.0]], [[99.0]]]], &Device::Cpu).unwrap();
        let posterior = Posterior::from_moments(&moments).unwrap();
        assert_eq!(posterior.logvar.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [2.0, 20.0]);
        let noise = Tensor::new(&[[[[0.5f32]], [[0.0]]]], &Device::Cpu).unwrap();
        let want = Tensor::new(&[[[[3.0 + 0.5 * 1f32.exp()]], [[-1.0]]]], &Device::Cpu).unwrap();
        assert!(rel_rms(&posterior.sample(&noise).unwrap(), &want) < 1e-6);
        assert!(posterior.sample(&random(1, (1, 2, 1, 2))).is_err());
    }
}
