//! From tensors to device memory.

use candle_core::{DType, Device, Tensor};
use ddt_kernels::cuda::{Cuda, Float, Slice};

use crate::error::GpuError;

/// The numbers of a tensor, in row-major order.
pub(super) fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// A tensor on the device.
pub(super) fn upload<T: Float>(cuda: &Cuda, tensor: &Tensor) -> Result<Slice<T>, GpuError> {
    let values: Vec<T> = values(tensor)?.into_iter().map(T::from_f32).collect();
    Ok(cuda.upload(&values)?)
}

/// The kernel and the bias of a convolution, (out, in, rows, columns) to (out, rows, columns, in), channels padded with
/// zeros to multiples of `multiple`.
pub(super) fn upload_conv<T: Float>(
    cuda: &Cuda,
    (weight, bias): (&Tensor, &Tensor),
    multiple: usize,
) -> Result<(Slice<T>, Slice<T>), GpuError> {
    let (out, inp, _, _) = weight.dims4()?;
    let more = |channels: usize| channels.next_multiple_of(multiple) - channels;
    let weight = weight.pad_with_zeros(0, 0, more(out))?.pad_with_zeros(1, 0, more(inp))?;
    let bias = bias.pad_with_zeros(0, 0, more(out))?;
    Ok((upload(cuda, &weight.permute((0, 2, 3, 1))?)?, upload(cuda, &bias)?))
}
