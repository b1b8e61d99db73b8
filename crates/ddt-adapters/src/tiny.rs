//! Tiny autoencoders: small convolutional networks that approximate large autoencoders, 8 times down.
//!
//! Follows [`taesd.py`] and keeps the names of its files; pixels inside are in `[0, 1]`.
//!
//! [`taesd.py`]: https://github.com/madebyollin/taesd/blob/2a1b4149efda2cb6da482e8d3ff017bdb4f98fc3/taesd.py

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;
use ddt_kernels::{Activation, Window2d};
use serde::{Deserialize, Serialize};

use crate::autoencoder::{Autoencoder, Decode, Encode, LatentSpace, check_latents, check_pixels, in_batches};
use crate::layers::{Conv2d, GroupNorm, unrounded};
use crate::load::{LoadError, check_sizes, load_network};

/// Pixels along a side of one latent position.
const DOWNSCALE: usize = 8;

/// A 3 x 3 convolution of stride 2.
const DOWNSAMPLE: Window2d = Window2d::new((3, 3), 2, (1, 1));

/// Both halves of a tiny autoencoder.
///
/// ```text
/// latents = encoder((pixels + 1) / 2),   pixels = 2 decoder(latents) - 1
/// ```
pub type TinyAutoencoder = Autoencoder<TinyEncoder, TinyDecoder>;

impl TinyAutoencoder {
    /// Builds both halves; `vb` is the root of the file's names, above `encoder.` and `decoder.`.
    ///
    /// # Errors
    /// A configuration that [`TinyConfig::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &TinyConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            encoder: TinyEncoder::new(cfg, vb.pp("encoder"))?,
            decoder: TinyDecoder::new(cfg, vb.pp("decoder"))?,
        })
    }

    /// Builds both halves in `dtype` from a source that holds their tensors and no others.
    ///
    /// # Errors
    /// [`LoadError::Unrecognised`] without a `decoder.1.weight`;
    /// [`FileError::Mismatch`](ddt_files::FileError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load(
        source: &(impl TensorSource + Sync + ?Sized),
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let cfg = Half::Decoder.config(source, "decoder.")?;
        load_network(source, dtype, device, |_| true, |vb| Self::new(&cfg, vb))
    }
}

/// Which tiny autoencoder: the family differs in the latents and in the blocks at their resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TinyConfig {
    /// Channels of the latents: 4, 16 or 32 in the published files.
    pub latent_channels: usize,
    /// Channels between the first and the last convolution: 64 in the published files.
    #[serde(default = "published_width")]
    pub width: usize,
    /// Whether the blocks at latent resolution have normalised 1 x 1 convolutions (`pool`).
    pub mid_pool: bool,
}

impl TinyConfig {
    /// For Stable Diffusion's latents, such as DDT's: 4 channels.
    pub fn sd() -> Self {
        Self { latent_channels: 4, width: published_width(), mid_pool: false }
    }

    /// For the latents of Stable Diffusion 3 and FLUX.1: 16 channels.
    pub fn sd3() -> Self {
        Self { latent_channels: 16, ..Self::sd() }
    }

    /// For FLUX.2's latents: 32 channels.
    pub fn flux_2() -> Self {
        Self { latent_channels: 32, mid_pool: true, ..Self::sd() }
    }

    /// Refuses a number of channels that no autoencoder has.
    ///
    /// # Errors
    /// Latent channels or a width of zero or beyond 65536.
    pub fn validate(&self) -> Result<()> {
        check_sizes([("latent_channels", self.latent_channels), ("width", self.width)])
    }

    /// Builds the blocks at latent resolution.
    fn mid_block(self) -> fn(usize, VarBuilder) -> Result<Block> {
        if self.mid_pool { Block::with_pool } else { Block::new }
    }
}

fn published_width() -> usize {
    64
}

/// A half of a tiny autoencoder in a file.
#[derive(Clone, Copy, PartialEq)]
enum Half {
    Encoder,
    Decoder,
}

impl Half {
    /// The configuration of this half in `source`, its names beginning with `prefix`.
    fn config(
        self,
        source: &(impl TensorSource + ?Sized),
        prefix: &str,
    ) -> std::result::Result<TinyConfig, LoadError> {
        let (network, conv, block, expected) = match self {
            Self::Encoder => ("tiny encoder", 14, 11, "encoder.14.weight (or 14.weight) of 4 dimensions"),
            Self::Decoder => ("tiny decoder", 1, 3, "decoder.1.weight (or 1.weight) of 4 dimensions"),
        };
        let Some([out, inp]) = channels(source, &format!("{prefix}{conv}.weight")) else {
            return Err(LoadError::unrecognised(network, expected, source));
        };
        let (latent_channels, width) = if self == Self::Encoder { (out, inp) } else { (inp, out) };
        let mid_pool = source.info(&format!("{prefix}{block}.pool.0.weight")).is_some();
        Ok(TinyConfig { latent_channels, width, mid_pool })
    }

    /// Builds this half from a file of both, or of this one, whose published names are bare.
    fn load<N>(
        self,
        source: &(impl TensorSource + Sync + ?Sized),
        dtype: DType,
        device: &Device,
        new: fn(&TinyConfig, VarBuilder) -> Result<N>,
    ) -> std::result::Result<N, LoadError> {
        let (own, other) = match self {
            Self::Encoder => ("encoder.", "decoder."),
            Self::Decoder => ("decoder.", "encoder."),
        };
        if !source.names().iter().any(|name| name.starts_with(own)) {
            let cfg = self.config(source, "")?;
            return load_network(source, dtype, device, |_| true, |vb| new(&cfg, vb));
        }
        let cfg = self.config(source, own)?;
        let wanted = |name: &str| !name.starts_with(other);
        load_network(source, dtype, device, wanted, |vb| new(&cfg, vb.pp(own.trim_end_matches('.'))))
    }
}

/// Output and input channels of a convolution.
fn channels(source: &(impl TensorSource + ?Sized), name: &str) -> Option<[usize; 2]> {
    match *source.info(name)?.shape {
        [out, inp, _, _] => Some([out, inp]),
        _ => None,
    }
}

/// The encoder of a tiny autoencoder; usable without the decoder.
///
/// ```text
/// conv, 1 block, then three times (conv of stride 2, 3 blocks), conv
/// ```
///
/// Computes in the type of its weights, but on a CPU in `f32` instead of bf16; takes and gives `f32`.
#[derive(Debug, Clone)]
pub struct TinyEncoder {
    conv_in: Conv2d,
    first: Block,
    /// A convolution that downsamples, and the blocks after it.
    down_blocks: Vec<(Conv2d, Vec<Block>)>,
    conv_out: Conv2d,
    cfg: TinyConfig,
    dtype: DType,
}

impl TinyEncoder {
    /// Builds the encoder; `vb` is where `0.weight` is.
    ///
    /// # Errors
    /// A configuration that [`TinyConfig::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &TinyConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate()?;
        let (width, vb) = (cfg.width, unrounded(&vb));
        let mut down_blocks = Vec::new();
        for (first, block) in [(2, Block::new as fn(_, _) -> _), (6, Block::new), (10, cfg.mid_block())] {
            let downsample = Conv2d::no_bias(width, width, DOWNSAMPLE, vb.pp(first))?;
            let blocks = (first + 1..first + 4).map(|name| block(width, vb.pp(name)));
            down_blocks.push((downsample, blocks.collect::<Result<_>>()?));
        }
        Ok(Self {
            conv_in: Conv2d::new(3, width, Window2d::SAME_3, vb.pp(0))?,
            first: Block::new(width, vb.pp(1))?,
            down_blocks,
            conv_out: Conv2d::new(width, cfg.latent_channels, Window2d::SAME_3, vb.pp(14))?,
            cfg: *cfg,
            dtype: vb.dtype(),
        })
    }

    /// Builds the encoder in `dtype` from tensors named `encoder.0.weight` or `0.weight`; `decoder.*` may be there
    /// too, and are not read.
    ///
    /// # Errors
    /// [`LoadError::Unrecognised`] if the last convolution is absent;
    /// [`FileError::Mismatch`](ddt_files::FileError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load(
        source: &(impl TensorSource + Sync + ?Sized),
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        Half::Encoder.load(source, dtype, device, Self::new)
    }

    /// The configuration that it was built with.
    pub fn config(&self) -> &TinyConfig {
        &self.cfg
    }

    /// Latents of pixels in `[0, 1]`, as the network takes them.
    ///
    /// # Shapes
    /// `(B, 3, 8 H, 8 W) -> (B, C, H, W)`
    ///
    /// # Errors
    /// Any other shape.
    pub fn encode_raw(&self, pixels: &Tensor) -> Result<Tensor> {
        check_pixels(pixels, DOWNSCALE)?;
        in_batches(pixels, self.dtype, 1, |xs| self.latents(xs))?.contiguous()
    }

    /// `(B, 8 H, 8 W, 3) -> (B, H, W, C)`
    fn latents(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut xs = self.first.forward(&self.conv_in.forward(pixels)?)?;
        for (downsample, blocks) in &self.down_blocks {
            xs = downsample.forward(&xs)?;
            for block in blocks {
                xs = block.forward(&xs)?;
            }
        }
        self.conv_out.forward(&xs)
    }
}

impl LatentSpace for TinyEncoder {
    fn latent_channels(&self) -> usize {
        self.cfg.latent_channels
    }

    fn downscale(&self) -> usize {
        DOWNSCALE
    }
}

impl Encode for TinyEncoder {
    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        self.encode_raw(&pixels.to_dtype(DType::F32)?.affine(0.5, 0.5)?)
    }
}

/// The decoder of a tiny autoencoder; usable without the encoder.
///
/// ```text
/// 3 tanh(z / 3), conv, relu, then three times (3 blocks, nearest x2, conv), 1 block, conv
/// ```
///
/// Computes in the type of its weights, but on a CPU in `f32` instead of bf16; takes and gives `f32`.
#[derive(Debug, Clone)]
pub struct TinyDecoder {
    conv_in: Conv2d,
    /// Blocks, and the convolution of their upsampled result.
    up_blocks: Vec<(Vec<Block>, Conv2d)>,
    last: Block,
    conv_out: Conv2d,
    cfg: TinyConfig,
    dtype: DType,
}

impl TinyDecoder {
    /// Builds the decoder; `vb` is where `1.weight` is.
    ///
    /// # Errors
    /// A configuration that [`TinyConfig::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &TinyConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate()?;
        let (width, vb) = (cfg.width, unrounded(&vb));
        let mut up_blocks = Vec::new();
        for (first, block) in [(3, cfg.mid_block()), (8, Block::new), (13, Block::new)] {
            let blocks = (first..first + 3).map(|name| block(width, vb.pp(name))).collect::<Result<_>>()?;
            up_blocks.push((blocks, Conv2d::upsampling_no_bias(width, width, vb.pp(first + 4))?));
        }
        let conv_in = Conv2d::new(cfg.latent_channels, width, Window2d::SAME_3, vb.pp(1))?;
        Ok(Self {
            conv_in: conv_in.then(Activation::Relu),
            up_blocks,
            last: Block::new(width, vb.pp(18))?,
            conv_out: Conv2d::new(width, 3, Window2d::SAME_3, vb.pp(19))?,
            cfg: *cfg,
            dtype: vb.dtype(),
        })
    }

    /// Builds the decoder in `dtype` from tensors named `decoder.1.weight` or `1.weight`; `encoder.*` may be there
    /// too, and are not read.
    ///
    /// # Errors
    /// [`LoadError::Unrecognised`] if the first convolution is absent;
    /// [`FileError::Mismatch`](ddt_files::FileError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load(
        source: &(impl TensorSource + Sync + ?Sized),
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        Half::Decoder.load(source, dtype, device, Self::new)
    }

    /// The configuration that it was built with.
    pub fn config(&self) -> &TinyConfig {
        &self.cfg
    }

    /// Pixels as the network gives them: mostly in `[0, 1]`, not clamped.
    ///
    /// # Shapes
    /// `(B, C, H, W) -> (B, 3, 8 H, 8 W)`
    ///
    /// # Errors
    /// Any other shape.
    pub fn decode_raw(&self, latents: &Tensor) -> Result<Tensor> {
        check_latents(latents, self.cfg.latent_channels)?;
        in_batches(latents, self.dtype, DOWNSCALE * DOWNSCALE, |xs| self.pixels(xs))
    }

    /// `(B, H, W, C) -> (B, 8 H, 8 W, 3)`
    fn pixels(&self, latents: &Tensor) -> Result<Tensor> {
        let mut xs = self.conv_in.forward(&((latents / 3.0)?.tanh()? * 3.0)?)?;
        for (blocks, upsample) in &self.up_blocks {
            for block in blocks {
                xs = block.forward(&xs)?;
            }
            xs = upsample.forward(&xs)?;
        }
        self.conv_out.forward(&self.last.forward(&xs)?)
    }
}

impl LatentSpace for TinyDecoder {
    fn latent_channels(&self) -> usize {
        self.cfg.latent_channels
    }

    fn downscale(&self) -> usize {
        DOWNSCALE
    }
}

impl Decode for TinyDecoder {
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        check_latents(latents, self.cfg.latent_channels)?;
        let signed = |xs: &Tensor| self.pixels(xs)?.to_dtype(DType::F32)?.affine(2.0, -1.0);
        in_batches(latents, self.dtype, DOWNSCALE * DOWNSCALE, signed)
    }
}

/// Residual block: `(B, H, W, width) -> same`.
///
/// ```text
/// relu(conv(relu(conv(relu(conv(x))))) + x),   after x += pool(x) where there is a pool
/// ```
#[derive(Debug, Clone)]
struct Block {
    pool: Option<Pool>,
    convs: [Conv2d; 3],
}

impl Block {
    fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        let conv =
            |name| Ok(Conv2d::new(width, width, Window2d::SAME_3, vb.pp(name))?.then(Activation::Relu));
        let convs: [Result<Conv2d>; 3] = ["conv.0", "conv.2", "conv.4"].map(conv);
        let [first, second, third] = convs;
        Ok(Self { pool: None, convs: [first?, second?, third?] })
    }

    fn with_pool(width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { pool: Some(Pool::new(width, vb.pp("pool"))?), ..Self::new(width, vb)? })
    }
}

impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let pooled = match &self.pool {
            Some(pool) => pool.forward(xs)?,
            None => xs.clone(),
        };
        let [first, second, third] = &self.convs;
        third.forward_add(&second.forward(&first.forward(&pooled)?)?, &pooled)
    }
}

/// `x + narrow(relu(norm(widen(x))))`: 1 x 1 convolutions, and a norm that carries statistics of the whole image.
#[derive(Debug, Clone)]
struct Pool {
    widen: Conv2d,
    norm: GroupNorm,
    narrow: Conv2d,
}

impl Pool {
    fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        let wide = 4 * width;
        Ok(Self {
            widen: Conv2d::no_bias(width, wide, Window2d::POINT, vb.pp(0))?,
            norm: GroupNorm::new(4, wide, 1e-5, vb.pp(1))?.then(Activation::Relu),
            narrow: Conv2d::no_bias(wide, width, Window2d::POINT, vb.pp(3))?,
        })
    }
}

impl Module for Pool {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.narrow.forward_add(&self.norm.forward(&self.widen.forward(xs)?)?, xs)
    }
}
