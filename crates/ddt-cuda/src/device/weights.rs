//! Uploads tensors to device memory.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddt_kernels::cuda::{Cuda, CudaError, Float, Slice};
use half::bf16;

use crate::{
    buffer::Precision,
    error::GpuError,
    weights::{Weight, WeightTable},
};

/// All weights of a network in one allocation, uploaded once.
#[derive(Debug, Clone)]
pub struct DeviceWeights {
    memory: Slice<u8>,
    offsets: Vec<usize>,
    pub(super) precision: Precision,
}

impl DeviceWeights {
    /// Converts the weights, under their published names in `vb`, and uploads them part by part.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`], or a weight that is missing or misshapen.
    pub fn upload(
        cuda: &Cuda,
        table: &WeightTable,
        precision: Precision,
        vb: &VarBuilder<'_>,
    ) -> Result<Self, GpuError> {
        let (offsets, bytes) = table.places(precision.element());
        let memory = cuda.alloc::<u8>(bytes).map_err(|error| match error {
            CudaError::OutOfMemory { asked, free, .. } => GpuError::OutOfMemory {
                message: format!(
                    "the weights need {asked} bytes of GPU memory where {free} are free; use a smaller network"
                ),
                fit: 0,
            },
            other => other.into(),
        })?;
        let weights = Self { memory, offsets, precision };
        for (index, weight) in table.all().iter().enumerate() {
            match precision {
                Precision::Bf16 => weights.write::<bf16>(cuda, weight, index, vb)?,
                Precision::F32 => weights.write::<f32>(cuda, weight, index, vb)?,
            }
        }
        Ok(weights)
    }

    fn write<T: Float>(
        &self,
        cuda: &Cuda,
        weight: &Weight,
        index: usize,
        vb: &VarBuilder<'_>,
    ) -> Result<(), GpuError> {
        let mut place = self.slice::<T>(weight, index)?;
        for name in &weight.parts {
            let mut tensor = vb.get(weight.part_shape.as_slice(), name)?;
            for (dim, (&have, &want)) in weight.part_shape.iter().zip(&weight.padded).enumerate() {
                if want > have {
                    tensor = tensor.pad_with_zeros(dim, 0, want - have)?;
                }
            }
            let values: Vec<T> = values(&tensor)?.into_iter().map(T::from_f32).collect();
            cuda.write(&place.sub(0..values.len())?, &values)?;
            place = place.sub(values.len()..place.len())?;
        }
        Ok(())
    }

    /// A weight's place.
    pub(super) fn slice<T: Float>(&self, weight: &Weight, index: usize) -> Result<Slice<T>, CudaError> {
        let start = self.offsets.get(index).copied().unwrap_or(usize::MAX);
        self.memory.sub(start..start.saturating_add(weight.num_elements() * size_of::<T>()))?.cast()
    }
}

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
    weight: &Tensor,
    bias: &Tensor,
    multiple: usize,
) -> Result<(Slice<T>, Slice<T>), GpuError> {
    let (out, inp, _, _) = weight.dims4()?;
    let more = |channels: usize| channels.next_multiple_of(multiple) - channels;
    let weight = weight.pad_with_zeros(0, 0, more(out))?.pad_with_zeros(1, 0, more(inp))?;
    let bias = bias.pad_with_zeros(0, 0, more(out))?;
    Ok((upload(cuda, &weight.permute((0, 2, 3, 1))?)?, upload(cuda, &bias)?))
}
