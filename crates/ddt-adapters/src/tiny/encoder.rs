//! Pixels to latents.

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;

use super::DOWNSCALE;
use super::block::{Block, blocks, forward_all};
use super::config::{TinyConfig, prefix_in};
use crate::autoencoder::{Autoencoder, check_pixels, in_batches};
use crate::dense::{Conv, Epilogue, Window};
use crate::load::{LoadError, build};

/// The encoder of a tiny autoencoder, usable alone.
///
/// ```text
/// conv, 1 block, then three times (conv of stride 2, 3 blocks), conv
/// ```
///
/// Computes in the type of its weights; takes and gives `f32`.
/// As an [`Autoencoder`] it encodes, and refuses to decode.
#[derive(Debug, Clone)]
pub struct TinyEncoder {
    conv_in: Conv,
    first: Block,
    levels: [Level; 3],
    conv_out: Conv,
    cfg: TinyConfig,
    dtype: DType,
}

/// The convolution that halves a resolution, and the blocks after it.
#[derive(Debug, Clone)]
struct Level {
    halve: Conv,
    blocks: Vec<Block>,
}

impl TinyEncoder {
    /// Makes the encoder; `vb` stands where `0.weight` is.
    ///
    /// # Errors
    ///
    /// A configuration that [`TinyConfig::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &TinyConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate()?;
        let width = cfg.width;
        let level = |first: usize, make| {
            Ok(Level {
                halve: Conv::read_no_bias((width, width), Window::HALVE, vb.pp(first))?,
                blocks: blocks(first + 1..first + 4, make, width, &vb)?,
            })
        };
        let mid = if cfg.mid_pool { Block::with_pool } else { Block::new };
        let levels: [Result<Level>; 3] = [level(2, Block::new), level(6, Block::new), level(10, mid)];
        let [fine, middle, coarse] = levels;
        Ok(Self {
            conv_in: Conv::read((3, width), Window::SAME, vb.pp(0))?,
            first: Block::new(width, vb.pp(1))?,
            levels: [fine?, middle?, coarse?],
            conv_out: Conv::read((width, cfg.latent_channels), Window::SAME, vb.pp(14))?,
            cfg: *cfg,
            dtype: vb.dtype(),
        })
    }

    /// Makes the encoder, in `f32`, from tensors named `encoder.0.weight` or `0.weight`.
    ///
    /// A source with both halves will do: tensors of the decoder are passed over.
    ///
    /// # Errors
    ///
    /// [`LoadError::Unrecognised`] if the last convolution is absent;
    /// [`CheckpointError::Mismatch`](ddt_files::CheckpointError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load<S>(source: &S, device: &Device) -> std::result::Result<Self, LoadError>
    where
        S: TensorSource + Sync + ?Sized,
    {
        let prefix = prefix_in(source, "encoder.");
        let cfg = TinyConfig::of_encoder(source, prefix)?;
        let ours = |name: &str| prefix.is_empty() || !name.starts_with("decoder.");
        build(source, device, ours, |vb| {
            Self::new(&cfg, if prefix.is_empty() { vb } else { vb.pp("encoder") })
        })
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &TinyConfig {
        &self.cfg
    }

    /// Pixels in `[0, 1]`, as the network takes them, to latents.
    ///
    /// # Shapes
    ///
    /// `(B, 3, 8 H, 8 W) -> (B, C, H, W)`
    ///
    /// # Errors
    ///
    /// Any other shape.
    pub fn encode_raw(&self, pixels: &Tensor) -> Result<Tensor> {
        check_pixels(pixels, DOWNSCALE)?;
        in_batches(pixels, self.dtype, 1, |xs| self.forward(xs))
    }

    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let xs = pixels.permute((0, 2, 3, 1))?; // (B, H, W, C) from here on
        let mut xs = self.first.forward(&self.conv_in.forward(&xs, Epilogue::None)?)?;
        for level in &self.levels {
            xs = forward_all(&level.blocks, level.halve.forward(&xs, Epilogue::None)?)?;
        }
        self.conv_out.forward(&xs, Epilogue::None)?.permute((0, 3, 1, 2))?.contiguous()
    }
}

impl Autoencoder for TinyEncoder {
    fn latent_channels(&self) -> usize {
        self.cfg.latent_channels
    }

    fn downscale(&self) -> usize {
        DOWNSCALE
    }

    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        self.encode_raw(&pixels.to_dtype(DType::F32)?.affine(0.5, 0.5)?)
    }

    fn decode(&self, _: &Tensor) -> Result<Tensor> {
        bail!("expected an autoencoder with a decoder, got an encoder alone; load a TinyAutoencoder")
    }
}
