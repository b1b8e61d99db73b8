//! Fused operations on candle's CUDA devices: the kernels of [`crate::cuda`] on candle's stream and memory.
#![expect(unsafe_code, reason = "lends candle's memory to kernels, which take addresses")]

use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{
    CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage};
use candle_core::{Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use crate::cuda::{self, Cuda, Float, Rows, Slice};

/// An element of both, candle and the kernels.
pub(crate) trait Element: Float + CudaDType + DeviceRepr {}

impl Element for f32 {}
impl Element for bf16 {}

/// A tensor's elements as a kernel reads them.
#[derive(Debug)]
pub(crate) struct View<T> {
    /// From the first element to the last.
    pub(crate) slice: Slice<T>,
    /// From one row, along the last axis, to the next.
    pub(crate) stride: usize,
}

impl<T: Float> View<T> {
    /// A row for each `tokens_per_row` tokens.
    pub(crate) fn rows(&self, tokens_per_row: usize) -> Rows<'_, T> {
        Rows { data: &self.slice, stride: self.stride, first: 0, tokens_per_row }
    }
}

/// The tensor with its elements where kernels read them: without gaps, but for those between rows where `gaps` are
/// allowed, and from a multiple of 16 bytes on.
pub(crate) fn placed(tensor: &Tensor, gaps: bool) -> Result<Tensor> {
    let (layout, bytes) = (tensor.layout(), tensor.dtype().size_in_bytes());
    let aligned = |elements: usize| (elements * bytes).is_multiple_of(16);
    let stride = row_stride(layout).filter(|it| gaps && aligned(*it));
    if (layout.is_contiguous() || stride.is_some()) && aligned(layout.start_offset()) {
        return Ok(tensor.clone());
    }
    if layout.is_contiguous() { tensor.copy() } else { tensor.contiguous() }
}

/// From one row to the next, if it is the same everywhere and rows have no gaps.
fn row_stride(layout: &Layout) -> Option<usize> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let (&width, leading) = dims.split_last()?;
    let apart: Vec<_> = leading.iter().zip(strides).filter(|(len, _)| **len > 1).collect();
    let (_, &stride) = apart.last().copied().unwrap_or((&1, &width));
    let mut expected = stride;
    let even = apart.iter().rev().all(|(len, stride)| {
        let even = **stride == expected;
        expected *= **len;
        even
    });
    (even && stride >= width && (width <= 1 || strides.last() == Some(&1))).then_some(stride)
}

/// The result of a kernel that `launch` puts on the stream, with `shape`, all of which it writes.
pub(crate) fn run<T: Element, const N: usize>(
    inputs: [(&CudaStorage, &Layout); N],
    shape: &Shape,
    launch: impl FnOnce(&Cuda, &[View<T>; N], &Slice<T>) -> cuda::Result<()>,
) -> Result<CudaStorage> {
    let device = &inputs[0].0.device;
    let (cuda, stream) = (kernels(device)?, device.cuda_stream());
    // SAFETY: the kernel writes every element.
    let mut out = unsafe { device.alloc::<T>(shape.elem_count()) }?;
    let views = inputs.map(|(storage, layout)| view::<T>(&cuda, storage, layout, &stream));
    let (views, guards): (Vec<_>, Vec<_>) =
        views.into_iter().collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let Ok(views) = <[View<T>; N]>::try_from(views) else { bail!("expected {N} inputs of a kernel") };
    let (address, written) = out.device_ptr_mut(&stream);
    // SAFETY: just allocated on this stream, with so many elements.
    let slice = unsafe { Slice::borrowed(&cuda.device, address, shape.elem_count()) };
    launch(&cuda, &views, &slice).map_err(candle_core::Error::wrap)?;
    drop((guards, written));
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// Calls `work` with the elements of a contiguous tensor, which kernels read as constants.
pub(crate) fn with_slice<R>(
    cuda: &Cuda,
    tensor: &Tensor,
    work: impl FnOnce(&Slice<f32>) -> cuda::Result<R>,
) -> cuda::Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let unfit = |error: candle_core::Error| cuda::CudaError::Argument {
        kernel: "with_slice",
        expected: "a contiguous f32 tensor on a CUDA device".to_owned(),
        got: error.to_string(),
    };
    let Storage::Cuda(storage) = &*storage else {
        return Err(unfit(candle_core::Error::Msg(format!("one on {:?}", tensor.device().location()))));
    };
    let stream = storage.device.cuda_stream();
    let (view, _guard) = view::<f32>(cuda, storage, layout, &stream).map_err(unfit)?;
    work(&view.slice)
}

/// A storage's elements. The guard tells other streams that they are read, when it is dropped.
fn view<'a, T: Element>(
    cuda: &Cuda,
    storage: &'a CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<(View<T>, SyncOnDrop<'a>)> {
    let Some(stride) = row_stride(layout) else {
        bail!("expected a tensor whose rows have no gaps, got layout {layout:?}");
    };
    let elements = storage.as_cuda_slice::<T>()?;
    let width = layout.dims().last().copied().unwrap_or(1);
    let rows = layout.shape().elem_count() / width.max(1);
    let len = rows.saturating_sub(1) * stride + width;
    let start = layout.start_offset();
    if start + len > elements.len() {
        bail!("expected {} elements in the tensor's memory, got {}", start + len, elements.len());
    }
    let (address, guard) = elements.device_ptr(stream);
    // SAFETY: the range is inside the storage, which the caller borrows until its kernel is on the stream; candle frees
    // memory on the same stream, so not before that kernel has run.
    let slice = unsafe { Slice::borrowed(&cuda.device, address + (start * size_of::<T>()) as u64, len) };
    Ok((View { slice, stride }, guard))
}

/// The kernels on a device's stream. They are loaded once for each stream, and kept, as is the stream.
fn kernels(device: &CudaDevice) -> Result<Cuda> {
    static LOADED: Mutex<Vec<((usize, usize), Cuda)>> = Mutex::new(Vec::new());
    let stream = device.cuda_stream();
    let of = (stream.context().ordinal(), stream.cu_stream() as usize);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, cuda)) = loaded.iter().find(|it| it.0 == of) {
        return Ok(cuda.clone());
    }
    let cuda = Cuda::on(stream).map_err(candle_core::Error::wrap)?;
    loaded.push((of, cuda.clone()));
    Ok(cuda)
}
