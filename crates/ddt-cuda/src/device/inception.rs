//! Inception on a device: images to the features that FID and its kin compare, in f32.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use ddt_adapters::InceptionFeatures;
use ddt_adapters::inception::{
    CLASSES, FoldedConv, FoldedInception, Layers, SPATIAL_CHANNELS, SPATIAL_SIDE, prepare,
};
use ddt_kernels::Window2d;
use ddt_kernels::cuda::{Cuda, Gemm, Slice, Window};

use super::upload::{upload, upload_conv, values};
use crate::error::GpuError;

use self::layers::{Buffers, Maps, Network, PIXEL_CHANNELS};

mod layers;

/// Images that pass through the network at once: with them it takes about 1 GiB.
const IMAGES_AT_ONCE: usize = 32;

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
    /// On the CPU.
    fc_bias: Tensor,
    /// Of the most images that were seen at once.
    buffers: Mutex<Option<Buffers>>,
}

impl CudaInception {
    /// Opens GPU `device`, from 0, and uploads the weights.
    ///
    /// # Errors
    /// [`GpuError::NotBuilt`] without the feature `cuda`; [`GpuError::Kernel`] where there is no driver, no such
    /// device or too little memory.
    pub fn open(device: usize, weights: &FoldedInception) -> Result<Self, GpuError> {
        Self::on(&super::open(device)?, weights)
    }

    /// The same on a device that is open.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn on(cuda: &Cuda, weights: &FoldedInception) -> Result<Self, GpuError> {
        let layers = weights.layers.try_map(|it| DeviceConv::upload(cuda, it))?;
        let fc = upload(cuda, &weights.fc)?;
        let fc_bias = weights.fc_bias.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(Self { cuda: cuda.clone(), layers, fc, fc_bias, buffers: Mutex::default() })
    }

    /// Name of the device.
    pub fn device_name(&self) -> &str {
        self.cuda.name()
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
        let (weight, bias) = upload_conv(cuda, (&conv.weight, &conv.bias), PIXEL_CHANNELS)?;
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
