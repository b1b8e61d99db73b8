//! Inception on a device: images to the features that FID and related metrics compare, in f32.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use ddt_adapters::{
    InceptionFeatures,
    inception::{
        Branch, CLASSES, FoldedConv, FoldedInception, Layers, Mixed, Pool, SIDE, SPATIAL_CHANNELS,
        SPATIAL_SIDE, prepare,
    },
};
use ddt_kernels::{
    Window2d,
    cuda::{Columns, Conv, Cuda, Gemm, Layout, Pool as KernelPool, Slice, Window},
};

use super::weights::{upload, upload_conv, values};
use crate::{
    arena::{GATHERED_BYTES, WORKSPACE_BYTES},
    error::GpuError,
};

/// Images that pass through the network at once; they take about 1 GiB.
const IMAGES_AT_ONCE: usize = 32;

/// Channels of an image on the device: three, and zeros to whole 16 bytes.
const PIXEL_CHANNELS: usize = 4;

/// Elements of an image's largest map: 147 x 147 of 64 channels, after the stem's third convolution.
const LARGEST: usize = 147 * 147 * 64;

/// A convolution on the device.
#[derive(Debug)]
struct DeviceConv {
    /// (out, rows, columns, in), channels of the input padded to whole 16 bytes.
    weight: Slice<f32>,
    bias: Slice<f32>,
    window: Window,
    channels: usize,
    out_channels: usize,
}

/// [`Inception`](ddt_adapters::Inception) on a GPU. All in f32, which is not rounded to TF32: scores are compared with
/// those of others.
#[derive(Debug)]
pub struct CudaInception {
    cuda: Cuda,
    layers: Layers<DeviceConv>,
    fc: Slice<f32>,
    /// Bias of the logits, on the CPU.
    fc_bias: Tensor,
    /// Buffers for the largest batch so far.
    buffers: Mutex<Option<Buffers>>,
}

impl CudaInception {
    /// Uploads the weights.
    ///
    /// # Errors
    /// [`GpuError::Kernel`] where there is too little memory.
    pub fn new(cuda: &Cuda, weights: &FoldedInception) -> Result<Self, GpuError> {
        let layers = weights.layers.try_map(|it| DeviceConv::upload(cuda, it))?;
        let fc = upload(cuda, &weights.fc)?;
        let fc_bias = weights.fc_bias.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(Self { cuda: cuda.clone(), layers, fc, fc_bias, buffers: Mutex::default() })
    }

    /// Features of images of any size, as [`Inception::forward`](ddt_adapters::Inception::forward): they are resized
    /// on the CPU.
    ///
    /// # Errors
    /// Pixels of another shape than `(B, 3, H, W)`; too little memory; a call that fails.
    pub fn forward(&self, pixels: &Tensor) -> Result<InceptionFeatures, GpuError> {
        let (images, _, _, _) = pixels.dims4()?;
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut pools, mut logits, mut spatials) = (Vec::new(), Vec::new(), Vec::new());
        for first in (0..images.max(1)).step_by(IMAGES_AT_ONCE) {
            let count = IMAGES_AT_ONCE.min(images - first);
            let some = prepare(&pixels.narrow(0, first, count)?)?; // (B, 299, 299, 3)
            let some = some.pad_with_zeros(3, 0, PIXEL_CHANNELS - 3)?;
            let ready = buffers.take().filter(|it| it.images >= count);
            let buffers = buffers.insert(match ready {
                Some(ready) => ready,
                None => Buffers::new(&self.cuda, count)?,
            });
            let network = Network { cuda: &self.cuda, layers: &self.layers, buffers, images: count };
            let Maps { pooled, spatial } = network.run(&values(&some)?)?;
            let made = buffers.logits.sub(0..count * CLASSES)?;
            self.cuda.gemm(&Gemm {
                input: &pooled,
                weight: &self.fc,
                bias: None,
                out: &made,
                depth: pooled.len() / count,
                workspace: &buffers.workspace,
            })?;
            pools.extend(self.cuda.read(&pooled)?);
            logits.extend(self.cuda.read(&made)?);
            spatials.extend(self.cuda.read(&spatial)?);
        }
        let rows = |values: Vec<f32>| {
            let width = values.len() / images.max(1);
            Tensor::from_vec(values, (images, width), &Device::Cpu)
        };
        let logits_unbiased = rows(logits)?;
        Ok(InceptionFeatures {
            pool: rows(pools)?,
            spatial: rows(spatials)?.reshape((images, SPATIAL_CHANNELS, SPATIAL_SIDE, SPATIAL_SIDE))?,
            logits: logits_unbiased.broadcast_add(&self.fc_bias)?,
            logits_unbiased,
        })
    }
}

impl DeviceConv {
    fn upload(cuda: &Cuda, conv: &FoldedConv) -> Result<Self, GpuError> {
        let (out_channels, inp, _, _) = conv.weight.dims4()?;
        let (weight, bias) = upload_conv(cuda, &conv.weight, &conv.bias, PIXEL_CHANNELS)?;
        Ok(Self {
            weight,
            bias,
            window: window(conv.window),
            channels: inp.next_multiple_of(PIXEL_CHANNELS),
            out_channels,
        })
    }
}

/// A window whose padding is the same on both sides, as all of this network's are.
fn window(Window2d { kernel, stride, pad_before, .. }: Window2d) -> Window {
    let ((height, width), (pad_rows, pad_columns)) = (kernel, pad_before);
    Window { height, width, stride, pad_rows, pad_columns }
}

/// Device memory for a batch of up to `images` images.
#[derive(Debug)]
struct Buffers {
    images: usize,
    maps: [Slice<f32>; 4],
    scratch: Slice<u8>,
    workspace: Slice<u8>,
    spatial: Slice<f32>,
    logits: Slice<f32>,
}

impl Buffers {
    fn new(cuda: &Cuda, images: usize) -> Result<Self, GpuError> {
        let map = || cuda.alloc::<f32>(images * LARGEST);
        Ok(Self {
            images,
            maps: [map()?, map()?, map()?, map()?],
            scratch: cuda.alloc(GATHERED_BYTES)?,
            workspace: cuda.alloc(WORKSPACE_BYTES)?,
            spatial: cuda.alloc(images * SPATIAL_CHANNELS * SPATIAL_SIDE * SPATIAL_SIDE)?,
            logits: cuda.alloc(images * CLASSES)?,
        })
    }
}

/// Results, on the device.
struct Maps {
    /// (B, 2048).
    pooled: Slice<f32>,
    /// (B, 7, 17, 17).
    spatial: Slice<f32>,
}

/// Maps in one of the buffers.
#[derive(Debug, Clone, Copy)]
struct At {
    buffer: usize,
    height: usize,
    width: usize,
    channels: usize,
}

/// Buffer of a convolution before its bias.
const RAW: usize = 2;
/// Buffer between the convolutions of a branch.
const BETWEEN: usize = 3;

/// Columns from `first` of maps this wide, in this buffer: where a branch writes its results.
#[derive(Debug, Clone, Copy)]
struct Columned {
    buffer: usize,
    stride: usize,
    first: usize,
}

/// The network on some images. Inputs and results of layers take turns in buffers 0 and 1.
struct Network<'a> {
    cuda: &'a Cuda,
    layers: &'a Layers<DeviceConv>,
    buffers: &'a Buffers,
    /// Images of this batch.
    images: usize,
}

impl Network<'_> {
    /// `pixels`: (B, 299, 299, 4).
    fn run(&self, pixels: &[f32]) -> Result<Maps, GpuError> {
        let mut at = At { buffer: 0, height: SIDE, width: SIDE, channels: PIXEL_CHANNELS };
        self.cuda.write(&self.maps(at)?, pixels)?;
        for (i, conv) in self.layers.stem.iter().enumerate() {
            if i == 3 {
                at = self.pool(at, Pool::MAX_DOWN, 1 - at.buffer)?;
            }
            let to = Columned { buffer: 1 - at.buffer, stride: conv.out_channels, first: 0 };
            at = self.conv(at, conv, to)?;
        }
        at = self.pool(at, Pool::MAX_DOWN, 1 - at.buffer)?;
        for mixed in &self.layers.middle {
            at = self.mixed(at, mixed)?;
        }
        let (images, positions) = (self.images, at.height * at.width);
        // The first branch comes first.
        let layout = Layout { images, channels: SPATIAL_CHANNELS, positions, wide: at.channels };
        let spatial = self.buffers.spatial.sub(0..images * SPATIAL_CHANNELS * positions)?;
        self.cuda.channels_first(&self.maps(at)?, layout, &spatial)?;
        for mixed in &self.layers.last {
            at = self.mixed(at, mixed)?;
        }
        let whole = Window { height: at.height, width: at.width, ..Window::POINT };
        let at = self.pool_window(at, whole, true, 1 - at.buffer)?;
        Ok(Maps { pooled: self.maps(at)?, spatial })
    }

    fn maps(&self, at: At) -> Result<Slice<f32>, GpuError> {
        let len = self.images * at.height * at.width * at.channels;
        Ok(self.buffers.maps[at.buffer].sub(0..len)?)
    }

    /// A block of parallel branches, whose results are concatenated along the channels.
    fn mixed(&self, at: At, mixed: &Mixed<DeviceConv>) -> Result<At, GpuError> {
        let stride = mixed.0.iter().map(|it| out_channels(it, at.channels)).sum();
        let mut to = Columned { buffer: 1 - at.buffer, stride, first: 0 };
        let mut result = at;
        for branch in &mixed.0 {
            result = self.branch(at, branch, to)?;
            to.first += out_channels(branch, at.channels);
        }
        Ok(result)
    }

    fn branch(&self, input: At, branch: &Branch<DeviceConv>, to: Columned) -> Result<At, GpuError> {
        let mut at = match branch.pool {
            Some(kind) => self.pool(input, kind, BETWEEN)?,
            None => input,
        };
        // Without others at the end, the last of the convolutions writes the result.
        let inner = branch.convs.len() - usize::from(branch.last.is_empty() && !branch.convs.is_empty());
        let (convs, end) = branch.convs.split_at(inner);
        for conv in convs {
            at = self.conv(at, conv, Columned { buffer: BETWEEN, stride: conv.out_channels, first: 0 })?;
        }
        let mut to = to;
        let mut result = None;
        for conv in end.iter().chain(&branch.last) {
            result = Some(self.conv(at, conv, to)?);
            to.first += conv.out_channels;
        }
        match result {
            Some(result) => Ok(result),
            // A pool only.
            None => self.place(at, None, to),
        }
    }

    /// A convolution with its bias and ReLU.
    fn conv(&self, at: At, conv: &DeviceConv, to: Columned) -> Result<At, GpuError> {
        let (height, width) = conv.window.result_of(at.height, at.width).unwrap_or_default();
        let raw = At { buffer: RAW, height, width, channels: conv.out_channels };
        self.cuda.conv(&Conv {
            input: &self.maps(at)?,
            images: self.images,
            height: at.height,
            width: at.width,
            channels: conv.channels,
            window: conv.window,
            weight: &conv.weight,
            bias: None,
            out: &self.maps(raw)?,
            scratch: &self.buffers.scratch,
            workspace: &self.buffers.workspace,
        })?;
        self.place(raw, Some(&conv.bias), to)
    }

    /// Copies maps into columns of the result, with bias and ReLU if there is a bias.
    fn place(&self, at: At, bias: Option<&Slice<f32>>, to: Columned) -> Result<At, GpuError> {
        let result = At { buffer: to.buffer, channels: to.stride, ..at };
        self.cuda.columns(&Columns {
            x: &self.maps(at)?,
            width: at.channels,
            bias,
            relu: bias.is_some(),
            out: &self.maps(result)?,
            stride: to.stride,
            first: to.first,
        })?;
        Ok(result)
    }

    fn pool(&self, at: At, pool: Pool, buffer: usize) -> Result<At, GpuError> {
        self.pool_window(at, window(pool.window), pool.mean, buffer)
    }

    fn pool_window(&self, at: At, window: Window, mean: bool, buffer: usize) -> Result<At, GpuError> {
        let (height, width) = window.result_of(at.height, at.width).unwrap_or_default();
        let result = At { buffer, height, width, ..at };
        self.cuda.pool(&KernelPool {
            x: &self.maps(at)?,
            height: at.height,
            width: at.width,
            channels: at.channels,
            window,
            mean,
            out: &self.maps(result)?,
        })?;
        Ok(result)
    }
}

/// Channels of a branch's result, for `input` channels.
fn out_channels(branch: &Branch<DeviceConv>, input: usize) -> usize {
    match (branch.last.as_slice(), branch.convs.last()) {
        ([], Some(conv)) => conv.out_channels,
        ([], None) => input,
        (last, _) => last.iter().map(|it| it.out_channels).sum(),
    }
}
