//! The network's layers, one after the other, on four buffers.

use ddt_adapters::inception::{Branch, CLASSES, Layers, Mixed, Pool, SIDE, SPATIAL_CHANNELS, SPATIAL_SIDE};
use ddt_kernels::cuda::{Columns, Conv, Cuda, Layout, Pool as KernelPool, Slice, Window};

use super::{DeviceConv, window};
use crate::arena::{GATHERED_BYTES, WORKSPACE_BYTES};
use crate::error::GpuError;

/// Channels of an image on the device: three, and zeros to whole 16 bytes.
pub(super) const PIXEL_CHANNELS: usize = 4;

/// Numbers of an image's largest map: 147 x 147 of 64 channels, after the stem's third convolution.
const LARGEST: usize = 147 * 147 * 64;

/// The memory of so many images or fewer.
#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) images: usize,
    maps: [Slice<f32>; 4],
    scratch: Slice<u8>,
    pub(super) workspace: Slice<u8>,
    spatial: Slice<f32>,
    pub(super) logits: Slice<f32>,
}

impl Buffers {
    pub(super) fn new(cuda: &Cuda, images: usize) -> Result<Self, GpuError> {
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
pub(super) struct Maps {
    /// (B, 2048).
    pub(super) pooled: Slice<f32>,
    /// (B, 7, 17, 17).
    pub(super) spatial: Slice<f32>,
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

/// Where a branch puts its results: columns from `first` of maps this wide, in this buffer.
#[derive(Debug, Clone, Copy)]
struct Columned {
    buffer: usize,
    stride: usize,
    first: usize,
}

/// The network on some images. Inputs and results of layers take turns in buffers 0 and 1.
pub(super) struct Network<'a> {
    pub(super) cuda: &'a Cuda,
    pub(super) layers: &'a Layers<DeviceConv>,
    pub(super) buffers: &'a Buffers,
    /// As many as are seen now.
    pub(super) images: usize,
}

impl Network<'_> {
    /// `pixels`: (B, 299, 299, 4).
    pub(super) fn run(&self, pixels: &[f32]) -> Result<Maps, GpuError> {
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
        let whole = Window { height: at.height, width: at.width, stride: 1, pad_rows: 0, pad_columns: 0 };
        let at = self.pool_window(at, (whole, true), 1 - at.buffer)?;
        Ok(Maps { pooled: self.maps(at)?, spatial })
    }

    fn maps(&self, at: At) -> Result<Slice<f32>, GpuError> {
        let len = self.images * at.height * at.width * at.channels;
        Ok(self.buffers.maps[at.buffer].sub(0..len)?)
    }

    /// Branches side by side.
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

    /// Puts maps into columns of the result, through bias and ReLU if there is a bias.
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
        self.pool_window(at, (window(pool.window), pool.mean), buffer)
    }

    fn pool_window(&self, at: At, (window, mean): (Window, bool), buffer: usize) -> Result<At, GpuError> {
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

/// Channels of a branch's results together, for so many of its input.
fn out_channels(branch: &Branch<DeviceConv>, input: usize) -> usize {
    match (branch.last.as_slice(), branch.convs.last()) {
        ([], Some(conv)) => conv.out_channels,
        ([], None) => input,
        (last, _) => last.iter().map(|it| it.out_channels).sum(),
    }
}
