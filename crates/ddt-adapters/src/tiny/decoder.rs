//! Latents to pixels.

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;

use super::DOWNSCALE;
use super::block::{Block, blocks, forward_all};
use super::config::{TinyConfig, prefix_in};
use crate::autoencoder::{Autoencoder, check_latents, in_batches};
use crate::dense::{Conv, Epilogue, Window};
use crate::load::{LoadError, build};

/// The decoder of a tiny autoencoder, usable alone.
///
/// ```text
/// 3 tanh(z / 3), conv, relu, then three times (3 blocks, nearest x2, conv), 1 block, conv
/// ```
///
/// Computes in the type of its weights; takes and gives `f32`.
/// As an [`Autoencoder`] it decodes, and refuses to encode.
#[derive(Debug, Clone)]
pub struct TinyDecoder {
    conv_in: Conv,
    levels: [Level; 3],
    last: Block,
    conv_out: Conv,
    cfg: TinyConfig,
    dtype: DType,
}

/// The blocks of one resolution, and the convolution after doubling it.
#[derive(Debug, Clone)]
struct Level {
    blocks: Vec<Block>,
    double: Conv,
}

impl TinyDecoder {
    /// Makes the decoder; `vb` stands where `1.weight` is.
    ///
    /// # Errors
    ///
    /// A configuration that [`TinyConfig::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &TinyConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate()?;
        let width = cfg.width;
        let level = |first: usize, make| {
            Ok(Level {
                blocks: blocks(first..first + 3, make, width, &vb)?,
                double: Conv::read_no_bias((width, width), Window::SAME, vb.pp(first + 4))?,
            })
        };
        let mid = if cfg.mid_pool { Block::with_pool } else { Block::new };
        let levels: [Result<Level>; 3] = [level(3, mid), level(8, Block::new), level(13, Block::new)];
        let [coarse, middle, fine] = levels;
        Ok(Self {
            conv_in: Conv::read((cfg.latent_channels, width), Window::SAME, vb.pp(1))?,
            levels: [coarse?, middle?, fine?],
            last: Block::new(width, vb.pp(18))?,
            conv_out: Conv::read((width, 3), Window::SAME, vb.pp(19))?,
            cfg: *cfg,
            dtype: vb.dtype(),
        })
    }

    /// Makes the decoder, in `f32`, from tensors named `decoder.1.weight` or `1.weight`.
    ///
    /// A source with both halves will do: tensors of the encoder are passed over.
    ///
    /// # Errors
    ///
    /// [`LoadError::Unrecognised`] if the first convolution is absent;
    /// [`CheckpointError::Mismatch`](ddt_files::CheckpointError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load<S>(source: &S, device: &Device) -> std::result::Result<Self, LoadError>
    where
        S: TensorSource + Sync + ?Sized,
    {
        let prefix = prefix_in(source, "decoder.");
        let cfg = TinyConfig::of_decoder(source, prefix)?;
        let ours = |name: &str| prefix.is_empty() || !name.starts_with("encoder.");
        build(source, device, ours, |vb| {
            Self::new(&cfg, if prefix.is_empty() { vb } else { vb.pp("decoder") })
        })
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &TinyConfig {
        &self.cfg
    }

    /// Latents to pixels as the network gives them: mostly in `[0, 1]`, not clamped.
    ///
    /// # Shapes
    ///
    /// `(B, C, H, W) -> (B, 3, 8 H, 8 W)`
    ///
    /// # Errors
    ///
    /// Any other shape.
    pub fn decode_raw(&self, latents: &Tensor) -> Result<Tensor> {
        check_latents(latents, self.cfg.latent_channels)?;
        in_batches(latents, self.dtype, DOWNSCALE * DOWNSCALE, |xs| self.forward(xs))
    }

    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let xs = ((latents / 3.0)?.tanh()? * 3.0)?.permute((0, 2, 3, 1))?; // (B, H, W, C) from here on
        let mut xs = self.conv_in.forward(&xs, Epilogue::Relu)?;
        for level in &self.levels {
            xs = doubled(&forward_all(&level.blocks, xs)?)?;
            xs = level.double.forward(&xs, Epilogue::None)?;
        }
        let ys = self.conv_out.forward(&self.last.forward(&xs)?, Epilogue::None)?;
        ys.permute((0, 3, 1, 2))?.contiguous()
    }
}

/// Every pixel four times: `(B, H, W, C) -> (B, 2 H, 2 W, C)`.
fn doubled(xs: &Tensor) -> Result<Tensor> {
    let (b, h, w, c) = xs.dims4()?;
    let xs = xs.reshape((b, h, 1, w, 1, c))?.broadcast_as((b, h, 2, w, 2, c))?;
    xs.reshape((b, 2 * h, 2 * w, c))
}

impl Autoencoder for TinyDecoder {
    fn latent_channels(&self) -> usize {
        self.cfg.latent_channels
    }

    fn downscale(&self) -> usize {
        DOWNSCALE
    }

    fn encode(&self, _: &Tensor) -> Result<Tensor> {
        bail!("expected an autoencoder with an encoder, got a decoder alone; load a TinyAutoencoder")
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decode_raw(latents)?.affine(2.0, -1.0)
    }
}
