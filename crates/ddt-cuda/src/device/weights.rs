//! Weights on a device.

use ddt_kernels::cuda::{Cuda, CudaError, Float, Slice};
use half::bf16;

use crate::{
    error::GpuError,
    program::Precision,
    weight_source::{WeightSource, read_part},
    weights::{Weight, WeightTable},
};

/// All weights of a network in one allocation, uploaded once.
#[derive(Debug, Clone)]
pub struct DeviceWeights {
    pub(super) memory: Slice<u8>,
    pub(super) offsets: Vec<usize>,
    pub(super) precision: Precision,
}

impl DeviceWeights {
    /// Converts the weights and uploads them, part by part.
    ///
    /// # Errors
    /// [`GpuError::WeightsOutOfMemory`], [`GpuError::Weight`], or a weight that cannot be read.
    pub fn upload(
        cuda: &Cuda,
        table: &WeightTable,
        precision: Precision,
        source: WeightSource<'_>,
    ) -> Result<Self, GpuError> {
        let (offsets, bytes) = table.places(precision.element());
        let memory = cuda.alloc::<u8>(bytes).map_err(|error| match error {
            CudaError::OutOfMemory { asked, free, .. } => {
                GpuError::WeightsOutOfMemory { needed: asked, free }
            }
            other => other.into(),
        })?;
        let weights = Self { memory, offsets, precision };
        for (weight, &offset) in table.all().iter().zip(&weights.offsets) {
            match precision {
                Precision::Bf16 => weights.write::<bf16>(cuda, weight, offset, source)?,
                Precision::F32 => weights.write::<f32>(cuda, weight, offset, source)?,
            }
        }
        Ok(weights)
    }

    fn write<T: Float>(
        &self,
        cuda: &Cuda,
        weight: &Weight,
        offset: usize,
        source: WeightSource<'_>,
    ) -> Result<(), GpuError> {
        let (len, whole) = (weight.part_len(), weight.len() * size_of::<T>());
        let whole = self.memory.sub(offset..offset + whole)?.cast::<T>()?;
        for part in 0..weight.parts.len() {
            let values = read_part(weight, part, source)?.into_iter().map(T::from_f32);
            let values: Vec<T> = values.collect();
            cuda.write(&whole.sub(part * len..(part + 1) * len)?, &values)?;
        }
        Ok(())
    }

    /// A weight's place.
    pub(super) fn slice<T: Float>(&self, weight: &Weight, index: usize) -> Result<Slice<T>, CudaError> {
        let start = self.offsets.get(index).copied().unwrap_or(usize::MAX);
        self.memory.sub(start..start.saturating_add(weight.len() * size_of::<T>()))?.cast()
    }
}
