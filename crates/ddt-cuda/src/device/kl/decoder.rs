//! Runs the decoder's program.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use ddt_adapters::{Autoencoder, KlConfig, KlDecoder, check_latents};
use ddt_kernels::cuda::{Activation, AddRows, Conv, Cuda, Float, GroupNorm, Layout, Rows, Window};
use half::bf16;

use super::{
    attention::Attend,
    place::{Here, Place, Sizes},
    program::{KlOp, Level, program},
    weights::KlWeights,
};
use crate::{error::GpuError, program::Precision};

/// Memory for the images that are decoded at once, unless another bound is given: 4 GiB, which beside the sampler's
/// stays within 12.
pub const DECODER_BYTES: usize = 4 << 30;

/// Of every group norm, as in the published decoder.
const EPS: f32 = 1e-6;

/// Images at once, at most: sizes of kernels are 32 bits.
const MOST_IMAGES: usize = 4096;

/// [`KlDecoder`] on a GPU: convolutions by cuDNN where its library is, otherwise as products of gathered windows.
///
/// Images are decoded as many at a time as a bound of memory allows; each comes out the same whichever others are
/// beside it, but for the order in which a library sums.
#[derive(Debug)]
pub struct CudaKlDecoder {
    cuda: Cuda,
    cfg: KlConfig,
    ops: Vec<KlOp>,
    weights: Weights,
    most_bytes: usize,
    /// Of the number and size of images that were decoded last.
    place: Mutex<Option<Place>>,
}

#[derive(Debug)]
enum Weights {
    Bf16(KlWeights<bf16>),
    F32(KlWeights<f32>),
}

impl CudaKlDecoder {
    /// Opens GPU `device`, from 0, and uploads the decoder's weights in the given precision; decoding takes
    /// `most_bytes` of memory beside them, such as [`DECODER_BYTES`].
    ///
    /// # Errors
    /// [`GpuError::NotBuilt`] without the feature `cuda`; [`GpuError::Kernel`] where there is no driver, no such
    /// device or too little memory; [`GpuError::Unsupported`] for sizes the kernels have no variant for.
    pub fn open(
        device: usize,
        decoder: &KlDecoder,
        precision: Precision,
        most_bytes: usize,
    ) -> Result<Self, GpuError> {
        Self::on(&crate::device::open(device)?, decoder, precision, most_bytes)
    }

    /// The same on a device that is open.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn on(
        cuda: &Cuda,
        decoder: &KlDecoder,
        precision: Precision,
        most_bytes: usize,
    ) -> Result<Self, GpuError> {
        let cfg = decoder.config().clone();
        let ops = program(&cfg)?;
        let weights = match precision {
            Precision::Bf16 => Weights::Bf16(KlWeights::upload(cuda, &ops, decoder)?),
            Precision::F32 => Weights::F32(KlWeights::upload(cuda, &ops, decoder)?),
        };
        Ok(Self { cuda: cuda.clone(), cfg, ops, weights, most_bytes, place: Mutex::default() })
    }

    /// Bytes that decoding so many latents of this height and width at once takes, beside the weights.
    pub fn bytes(&self, images: usize, latent: (usize, usize)) -> usize {
        self.sizes(images, latent).bytes()
    }

    /// Bytes of the weights.
    pub fn weight_bytes(&self) -> usize {
        match &self.weights {
            Weights::Bf16(weights) => weights.bytes(),
            Weights::F32(weights) => weights.bytes(),
        }
    }

    fn sizes(&self, images: usize, latent: (usize, usize)) -> Sizes {
        let element = match self.weights {
            Weights::Bf16(_) => 2,
            Weights::F32(_) => 4,
        };
        Sizes::new(&self.ops, images, latent, element, self.cfg.latent_channels)
    }

    /// The most images, at most `images`, that are decoded at once.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`] if one image takes more than the bound, or more than nine tenths of what is free.
    pub fn images_at_once(&self, images: usize, latent: (usize, usize)) -> Result<usize, GpuError> {
        let (free, _) = self.cuda.memory()?;
        let most = self.most_bytes.min(free / 10 * 9);
        // Memory grows with every image, so the largest number that fits stands between one that does and one that
        // does not.
        let (mut fit, mut too_many) = (0, images.min(MOST_IMAGES) + 1);
        while too_many - fit > 1 {
            let middle = fit + (too_many - fit) / 2;
            if self.bytes(middle, latent) <= most { fit = middle } else { too_many = middle }
        }
        if fit == 0 && images > 0 {
            let needed = self.bytes(1, latent);
            return Err(GpuError::OutOfMemory { images: 1, needed, free: most, fit });
        }
        Ok(fit)
    }

    /// Pixels of latents, as [`Autoencoder::decode`], whose errors are not told apart.
    ///
    /// # Errors
    /// Another shape, a latent that is no number; too little memory for one image; a call that fails.
    pub fn decode_on_gpu(&self, latents: &Tensor) -> Result<Tensor, GpuError> {
        check_latents(latents, self.cfg.latent_channels)?;
        let (images, channels, height, width) = latents.dims4()?;
        let values =
            latents.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let factor = self.cfg.downscale();
        let each = channels * height * width;
        let mut pixels = Vec::with_capacity(images * 3 * height * width * factor * factor);
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        // Given back before other memory is asked for.
        let ready = place.take().filter(|it| it.sizes.latent == (height, width) && it.asked >= images);
        let place = place.insert(match ready {
            Some(ready) => ready,
            None => {
                let at_once = self.images_at_once(images, (height, width))?;
                Place::new(&self.cuda, self.sizes(at_once, (height, width)), images)?
            }
        });
        for some in values.chunks(place.sizes.images * each) {
            let here = Here { place, images: some.len() / each };
            self.cuda.write(&place.latents.sub(0..some.len())?, some)?;
            match &self.weights {
                Weights::Bf16(weights) => self.run(weights, here)?,
                Weights::F32(weights) => self.run(weights, here)?,
            }
            pixels.extend(self.cuda.read(&here.pixels(factor * factor)?)?);
        }
        Ok(Tensor::from_vec(pixels, (images, 3, factor * height, factor * width), &Device::Cpu)?)
    }

    fn run<T: Float>(&self, weights: &KlWeights<T>, here: Here<'_>) -> Result<(), GpuError> {
        self.ops.iter().try_for_each(|op| self.launch(op, weights, here))
    }

    fn launch<T: Float>(&self, op: &KlOp, weights: &KlWeights<T>, here: Here<'_>) -> Result<(), GpuError> {
        let (cuda, Here { place, images }, latent) = (&self.cuda, here, here.place.sizes.latent);
        let slot = |slot, at| here.slot::<T>(slot, at);
        let affine = |name: &str| weights.affine.get(name).ok_or_else(|| missing(name));
        let layout = |channels, at: Level| Layout {
            images,
            channels,
            positions: at.positions(latent),
            wide: at.channels,
        };
        match *op {
            KlOp::Enter { out, at } => {
                let scale = (1.0 / self.cfg.scaling_factor) as f32;
                let layout = layout(self.cfg.latent_channels, at);
                cuda.channels_last(&here.latents(layout.channels)?, layout, scale, &slot(out, at)?)?;
            }
            KlOp::Conv { ref name, xs, out, at, channels, side } => {
                let (height, width) = at.sides(latent);
                let affine = affine(name)?;
                cuda.conv(&Conv {
                    input: &slot(xs, at)?,
                    images,
                    height,
                    width,
                    channels: at.channels,
                    window: if side == 1 { Window::POINT } else { Window::SAME },
                    weight: &affine.weight,
                    bias: Some(&affine.bias),
                    out: &slot(out, Level { channels, ..at })?,
                    scratch: &place.scratch,
                    workspace: &place.workspace,
                })?;
            }
            KlOp::Norm { ref name, xs, out, at } => {
                let affine = affine(name)?;
                cuda.group_norm(&GroupNorm {
                    x: &slot(xs, at)?,
                    positions: at.positions(latent),
                    channels: at.channels,
                    groups: self.cfg.norm_num_groups,
                    weight: &affine.weight,
                    bias: &affine.bias,
                    eps: EPS,
                    silu: true,
                    scratch: &place.moments,
                    out: &slot(out, at)?,
                })?;
            }
            KlOp::Add { xs, ys, at } => {
                let (xs, ys) = (slot(xs, at)?, slot(ys, at)?);
                let rows = Rows { data: &ys, stride: at.channels, first: 0, tokens_per_row: 1 };
                cuda.add_rows(&AddRows {
                    x: &xs,
                    width: at.channels,
                    addend: Some(rows),
                    activation: Activation::None,
                    out: &xs,
                })?;
            }
            KlOp::Double { xs, out, at } => {
                let level = Level { factor: 2 * at.factor, ..at };
                cuda.double_size(&slot(xs, at)?, at.sides(latent), at.channels, &slot(out, level)?)?;
            }
            KlOp::Attention { ref name, xs, at } => {
                let attend = Attend {
                    cuda,
                    here,
                    weights: weights.attention.get(name).ok_or_else(|| missing(name))?,
                    norm: affine(&format!("{name}.group_norm"))?,
                    groups: self.cfg.norm_num_groups,
                    eps: EPS,
                    at,
                };
                attend.run(&slot(xs, at)?)?;
            }
            KlOp::Leave { xs, at } => {
                let pixels = here.pixels(at.factor * at.factor)?;
                cuda.channels_first(&slot(xs, at)?, layout(3, at), &pixels)?;
            }
        }
        Ok(())
    }
}

/// Weights were uploaded for the same operations, so none is.
fn missing(name: &str) -> GpuError {
    candle_core::Error::Msg(format!("expected weights of {name}, got none")).into()
}

impl Autoencoder for CudaKlDecoder {
    fn latent_channels(&self) -> usize {
        self.cfg.latent_channels
    }

    fn downscale(&self) -> usize {
        self.cfg.downscale()
    }

    fn encode(&self, _: &Tensor) -> candle_core::Result<Tensor> {
        candle_core::bail!(
            "expected an autoencoder with an encoder, got a decoder alone; load a KlAutoencoder"
        )
    }

    fn decode(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        self.decode_on_gpu(latents).map_err(|error| match error {
            GpuError::Candle(error) => error,
            other => candle_core::Error::wrap(other),
        })
    }
}
