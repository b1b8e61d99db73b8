//! Matrix products of frozen networks on the CPU, and what surrounds them.
//!
//! Weights are put into [`Panels`] once, at load; a product then multiplies rows of its input with one
//! panel after the other in registers, and adds bias and residual and applies the activation before
//! anything is written. Images lie as (B, H, W, C), so a convolution is the same product over rows that
//! overlap, and nothing is gathered beforehand.
//!
//! Everything here is for inference in f32; other devices and types go through candle's operations.

mod attention;
mod conv;
mod epilogue;
mod exp;
mod factor;
mod layer_norm;
mod linear;
mod panels;
mod pool;
mod product;
mod tile;

pub(crate) use attention::attention;
pub(crate) use conv::Conv;
pub use conv::Window;
pub(crate) use epilogue::Epilogue;
pub(crate) use layer_norm::LayerNorm;
pub(crate) use linear::Linear;
pub use pool::Pool;
pub(crate) use pool::pool;

use candle_core::{CpuStorage, DType, Device, Layout, Result, Tensor, bail};

/// Whether the operations here apply to this tensor.
fn is_ours(xs: &Tensor) -> bool {
    matches!(xs.device(), Device::Cpu) && xs.dtype() == DType::F32
}

/// The elements of a contiguous tensor.
fn slice<'a>(name: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("{name}: expected a contiguous tensor, got {layout:?}"),
    }
}
