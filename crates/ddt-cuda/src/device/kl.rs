//! Stable Diffusion's decoder on a device: latents to pixels.
//!
//! The decoder is a list of operations on three buffers (`program`) with operands on the device (`weights`) and
//! positions in memory for a number of images (`memory`).

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use ddt_adapters::{Decode, KlConfig, LatentSpace, check_latents};
use ddt_kernels::cuda::{
    Activation, AddRows, Conv, Cuda, CudaError, Float, Gemm, GroupNorm, Layout, Rows, Slice, Window,
};
use half::bf16;

use self::{
    memory::{Memory, Part, Sizes},
    program::{KlOp, Level, program},
    weights::{Affine, AttentionWeights, KlWeights},
};
use super::weights::values;
use crate::{buffer::Precision, error::GpuError};

mod memory;
mod program;
mod weights;

/// Memory that is left free: libraries and kernels that are loaded late need their own.
const RESERVE: usize = 512 << 20;

/// Epsilon of every group norm.
const EPS: f32 = KlConfig::NORM_EPS as f32;

/// Images at once, at most: sizes of kernels are 32 bits.
const MOST_IMAGES: usize = 4096;

/// [`KlDecoder`](ddt_adapters::KlDecoder) on a GPU: convolutions by cuDNN where it is installed, otherwise as
/// GEMMs of gathered windows.
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
    /// Memory for the number and size of images that were decoded last.
    memory: Mutex<Option<Memory>>,
}

#[derive(Debug)]
enum Weights {
    Bf16(KlWeights<bf16>),
    F32(KlWeights<f32>),
}

impl CudaKlDecoder {
    /// Uploads the decoder's weights in the given precision; decoding takes `most_bytes` of memory beside them, such
    /// as [`DECODER_BYTES`](crate::DECODER_BYTES). `vb` is as for [`KlDecoder::new`](ddt_adapters::KlDecoder::new).
    ///
    /// Memory that a decoder gives back while a graph of the same device lives, such as a sampler's, is free only when
    /// the last graph is gone.
    ///
    /// # Errors
    /// [`GpuError::Kernel`] where there is too little memory; [`GpuError::Unsupported`] for sizes the kernels have no
    /// variant for.
    pub fn new(
        cuda: &Cuda,
        cfg: &KlConfig,
        precision: Precision,
        most_bytes: usize,
        vb: VarBuilder<'_>,
    ) -> Result<Self, GpuError> {
        let (cfg, ops) = (cfg.clone(), program(cfg)?);
        let weights = match precision {
            Precision::Bf16 => Weights::Bf16(KlWeights::upload(cuda, &cfg, &ops, &vb)?),
            Precision::F32 => Weights::F32(KlWeights::upload(cuda, &cfg, &ops, &vb)?),
        };
        Ok(Self { cuda: cuda.clone(), cfg, ops, weights, most_bytes, memory: Mutex::default() })
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
    /// [`GpuError::OutOfMemory`] if one image takes more than the bound, or more than is free but for a reserve.
    pub fn images_at_once(&self, images: usize, latent: (usize, usize)) -> Result<usize, GpuError> {
        self.images_beside(0, images, latent)
    }

    /// The same where so many bytes are taken that may be used again.
    fn images_beside(&self, taken: usize, images: usize, latent: (usize, usize)) -> Result<usize, GpuError> {
        // Starts the library, which takes memory too.
        self.cuda.cudnn_version();
        let (free, _) = self.cuda.memory()?;
        let bound = self.most_bytes.min(free.saturating_add(taken).saturating_sub(RESERVE));
        // Memory grows with every image, so bisection finds the largest number that fits.
        let (mut fit, mut too_many) = (0, images.min(MOST_IMAGES) + 1);
        while too_many - fit > 1 {
            let middle = fit + (too_many - fit) / 2;
            if self.bytes(middle, latent) <= bound { fit = middle } else { too_many = middle }
        }
        if fit == 0 && images > 0 {
            let needed = self.bytes(1, latent);
            let message = format!(
                "decoding one image of this size takes {needed} bytes of GPU memory, expected at most {bound}; {free} \
                 are free"
            );
            return Err(GpuError::OutOfMemory { message, fit: 0 });
        }
        Ok(fit)
    }

    /// Memory for these images: that of before if it suffices.
    fn memory(
        &self,
        before: Option<Memory>,
        images: usize,
        latent: (usize, usize),
    ) -> Result<Memory, GpuError> {
        let taken = match before {
            Some(it) if it.sizes.latent == latent && it.asked >= images => return Ok(it),
            before => before.map(|it| it.all),
        };
        let at_once = self.images_beside(taken.as_ref().map_or(0, Slice::len), images, latent)?;
        let sizes = self.sizes(at_once, latent);
        let all = match taken.filter(|it| it.len() >= sizes.bytes()) {
            Some(all) => all,
            // The memory of before is free by now.
            None => self.cuda.alloc(sizes.bytes())?,
        };
        Ok(Memory::new(all, sizes, images)?)
    }

    /// Pixels of latents, as [`Decode::decode`], whose errors are not told apart.
    ///
    /// # Errors
    /// Latents of another shape or with NaN or infinity; too little memory for one image; a failed CUDA call.
    pub fn decode_on_gpu(&self, latents: &Tensor) -> Result<Tensor, GpuError> {
        check_latents(latents, self.cfg.latent_channels)?;
        let (images, channels, height, width) = latents.dims4()?;
        let values = values(latents)?;
        let factor = self.cfg.downscale();
        let each = channels * height * width;
        let mut pixels = Vec::with_capacity(images * 3 * height * width * factor * factor);
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let before = memory.take();
        let memory = memory.insert(self.memory(before, images, (height, width))?);
        for some in values.chunks(memory.sizes.images * each) {
            let part = Part { memory, images: some.len() / each };
            self.cuda.write(&part.latents(channels)?, some)?;
            match &self.weights {
                Weights::Bf16(weights) => self.run(weights, part)?,
                Weights::F32(weights) => self.run(weights, part)?,
            }
            pixels.extend(self.cuda.read(&part.pixels(factor * factor)?)?);
        }
        Ok(Tensor::from_vec(pixels, (images, 3, factor * height, factor * width), &Device::Cpu)?)
    }

    fn run<T: Float>(&self, weights: &KlWeights<T>, part: Part<'_>) -> Result<(), GpuError> {
        self.ops.iter().try_for_each(|op| self.launch(op, weights, part))
    }

    fn launch<T: Float>(&self, op: &KlOp, weights: &KlWeights<T>, part: Part<'_>) -> Result<(), GpuError> {
        let (cuda, Part { memory, images }, latent) = (&self.cuda, part, part.memory.sizes.latent);
        let slot = |slot, at| part.slot::<T>(slot, at);
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
                cuda.channels_last(&part.latents(layout.channels)?, layout, scale, &slot(out, at)?)?;
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
                    scratch: &memory.scratch,
                    workspace: &memory.workspace,
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
                    scratch: &memory.moments,
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
            KlOp::Upsample { xs, out, at } => {
                let level = Level { factor: 2 * at.factor, ..at };
                cuda.upsample(&slot(xs, at)?, at.sides(latent), at.channels, &slot(out, level)?)?;
            }
            KlOp::Attention { ref name, xs, at } => {
                let matrices = weights.attention.get(name).ok_or_else(|| missing(name))?;
                let norm = affine(&format!("{name}.group_norm"))?;
                self.attention(matrices, norm, part, at, &slot(xs, at)?)?;
            }
            KlOp::Leave { xs, at } => {
                let pixels = part.pixels(at.factor * at.factor)?;
                cuda.channels_first(&slot(xs, at)?, layout(3, at), &pixels)?;
            }
        }
        Ok(())
    }

    /// `x += out(softmax(q k^T / sqrt(C)) v)` over the normed positions, (B, L, C), image by image in f32: scores
    /// of 8 bits would blur which positions are looked at.
    ///
    /// Values are multiplied transposed and without their bias, which weights that sum to 1 leave as it is: it is
    /// added to the result.
    fn attention<T: Float>(
        &self,
        matrices: &AttentionWeights,
        norm: &Affine<T>,
        Part { memory, images }: Part<'_>,
        at: Level,
        xs: &Slice<T>,
    ) -> Result<(), CudaError> {
        let (positions, channels) = (at.positions(memory.sizes.latent), at.channels);
        let len = positions * channels;
        let scratch = memory.scratch.cast::<f32>()?;
        let nth = |nth: usize| scratch.sub(nth * len..(nth + 1) * len);
        let (normed, query, key, value) = (nth(0)?, nth(1)?, nth(2)?, nth(3)?);
        let scores = scratch.sub(4 * len..scratch.len())?;
        let at_once = (scores.len() / positions).min(positions);
        let gemm = |input: &_, weight: &_, bias: Option<&_>, out: &_, depth| {
            self.cuda.gemm(&Gemm { input, weight, bias, out, depth, workspace: &memory.workspace })
        };
        let linear = |input, it: &Affine<f32>, out| gemm(input, &it.weight, Some(&it.bias), out, channels);
        for image in 0..images {
            let xs = xs.sub(image * len..(image + 1) * len)?;
            self.cuda.group_norm(&GroupNorm {
                x: &xs,
                positions,
                channels,
                groups: self.cfg.norm_num_groups,
                weight: &norm.weight,
                bias: &norm.bias,
                eps: EPS,
                silu: false,
                scratch: &memory.moments,
                out: &normed,
            })?;
            linear(&normed, &matrices.query, &query)?;
            linear(&normed, &matrices.key, &key)?;
            // (C, L): the weight's rows times the positions.
            gemm(&matrices.value.weight, &normed, None, &value, channels)?;
            // The normed positions are not read again: the result takes their place.
            for first in (0..positions).step_by(at_once.max(1)) {
                let count = at_once.min(positions - first);
                let rows = first * channels..(first + count) * channels;
                let scores = scores.sub(0..count * positions)?;
                gemm(&query.sub(rows.clone())?, &key, None, &scores, channels)?;
                self.cuda.softmax_rows(&scores, positions, 1.0 / (channels as f32).sqrt())?;
                gemm(&scores, &value, Some(&matrices.value.bias), &normed.sub(rows)?, positions)?;
            }
            linear(&normed, &matrices.out, &query)?;
            self.cuda.accumulate(&xs, &query)?;
        }
        Ok(())
    }
}

/// Weights were uploaded for the same operations, so none is.
fn missing(name: &str) -> GpuError {
    candle_core::Error::Msg(format!("expected weights of {name}, got none")).into()
}

impl LatentSpace for CudaKlDecoder {
    fn latent_channels(&self) -> usize {
        self.cfg.latent_channels
    }

    fn downscale(&self) -> usize {
        self.cfg.downscale()
    }
}

impl Decode for CudaKlDecoder {
    fn decode(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        self.decode_on_gpu(latents).map_err(|error| match error {
            GpuError::Candle(error) => error,
            other => candle_core::Error::wrap(other),
        })
    }
}
