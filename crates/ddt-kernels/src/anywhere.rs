//! Operations on other devices than the CPU.

use candle_core::{DType, Result, Shape, Tensor};

#[cfg(feature = "candle-cuda")]
use candle_core::{
    CudaStorage, Layout, bail,
    cuda_backend::CudaStorageSlice::{BF16, F32},
};

#[cfg(feature = "candle-cuda")]
use crate::gpu;

/// Whether the operation's kernels compute it for these tensors: there is no gradient to compute, and they have an
/// element type and sizes that kernels have.
#[cfg(feature = "candle-cuda")]
fn has_kernels<const N: usize>(op: &impl Anywhere<N>, inputs: [&Tensor; N]) -> bool {
    let first = inputs[0];
    let typed = match first.dtype() {
        DType::BF16 => op.fits::<half::bf16>(first.dims()),
        DType::F32 => op.fits::<f32>(first.dims()),
        _ => false,
    };
    typed && first.device().is_cuda() && inputs.iter().all(|it| !it.track_op() && it.elem_count() > 0)
}

/// The result, with `shape`, of an operation that [has kernels](has_kernels) for its inputs.
#[cfg(feature = "candle-cuda")]
pub(crate) fn kernel_result<const N: usize>(
    op: &impl Anywhere<N>,
    inputs: [(&CudaStorage, &Layout); N],
    shape: &Shape,
) -> Result<CudaStorage> {
    match &inputs[0].0.slice {
        BF16(_) => gpu::run::<half::bf16, N>(inputs, shape, |cuda, inputs, out| op.launch(cuda, inputs, out)),
        F32(_) => gpu::run::<f32, N>(inputs, shape, |cuda, inputs, out| op.launch(cuda, inputs, out)),
        _ => bail!("expected tensors in f32 or bf16 for kernels"),
    }
}

#[cfg(not(feature = "candle-cuda"))]
fn has_kernels<const N: usize>(_: &impl Anywhere<N>, _: [&Tensor; N]) -> bool {
    false
}

/// An operation of `N` tensors on other devices than the CPU.
pub(crate) trait Anywhere<const N: usize> {
    /// The same of candle's operations, differentiable, of inputs in f32: for devices, element types and sizes without
    /// kernels, and where a gradient is wanted.
    fn plain(&self, inputs: [&Tensor; N]) -> Result<Tensor>;

    /// The input whose rows may be apart from each other, if any.
    #[cfg(feature = "candle-cuda")]
    const SPACED: Option<usize> = None;

    /// Whether there is a kernel for a first input of these sizes.
    #[cfg(feature = "candle-cuda")]
    fn fits<T: crate::cuda::Float>(&self, _dims: &[usize]) -> bool {
        false
    }

    /// Puts the kernel on the stream.
    #[cfg(feature = "candle-cuda")]
    fn launch<T: crate::cuda::Float>(
        &self,
        _cuda: &crate::cuda::Cuda,
        _inputs: &[crate::gpu::View<T>; N],
        _out: &crate::cuda::Slice<T>,
    ) -> crate::cuda::Result<()> {
        Ok(())
    }
}

/// The result by candle's operations, unless the operation has kernels for these tensors.
pub(crate) fn plain_result<const N: usize>(
    op: &impl Anywhere<N>,
    shape: &Shape,
    inputs: [&Tensor; N],
) -> Result<Option<Tensor>> {
    if inputs[0].device().is_cpu() || has_kernels(op, inputs) {
        return Ok(None);
    }
    let wide = inputs.iter().map(|it| it.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
    let out = op.plain(std::array::from_fn(|i| &wide[i]))?;
    out.to_dtype(inputs[0].dtype())?.reshape(shape).map(Some)
}
