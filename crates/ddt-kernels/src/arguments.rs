//! Checks of an operation's tensors.

use candle_core::{DType, Result, Tensor, bail};

/// Fails unless all tensors have a supported dtype, the first one's, and its device.
pub(crate) fn check_alike(op: &str, tensors: &[(&str, &Tensor)]) -> Result<()> {
    let Some(((first_name, first), others)) = tensors.split_first() else { return Ok(()) };
    if !matches!(first.dtype(), DType::F32 | DType::BF16 | DType::F16) {
        bail!("{op}: expected {first_name} in f32, bf16 or f16, got {:?}", first.dtype());
    }
    for (name, tensor) in others {
        if tensor.dtype() != first.dtype() {
            let (want, got) = (first.dtype(), tensor.dtype());
            bail!("{op}: expected {name} in the dtype of {first_name}, {want:?}, got {got:?}");
        }
        if !tensor.device().same_device(first.device()) {
            let (want, got) = (first.device().location(), tensor.device().location());
            bail!("{op}: expected {name} on the device of {first_name}, {want:?}, got {got:?}");
        }
    }
    Ok(())
}

/// Fails if a tensor depends on a variable.
pub(crate) fn check_frozen(op: &str, tensors: &[(&str, &Tensor)]) -> Result<()> {
    match tensors.iter().find(|it| it.1.track_op()) {
        Some((name, _)) => {
            bail!("{op}: expected {name} that depends on no variable, since there is no gradient; detach it")
        }
        None => Ok(()),
    }
}

/// The shape of `x` as (B, L, D).
pub(crate) fn dims_bld(op: &str, x: &Tensor) -> Result<(usize, usize, usize)> {
    match x.dims3() {
        Ok(dims) => Ok(dims),
        Err(_) => bail!("{op}: expected x of shape (B, L, D), got {:?}", x.shape()),
    }
}

/// Fails unless `tensor` has this shape.
pub(crate) fn check_shape(op: &str, name: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.dims() != shape {
        bail!("{op}: expected {name} of shape {shape:?}, got {:?}", tensor.dims());
    }
    Ok(())
}

/// `dims` with another last one.
pub(crate) fn with_last(dims: &[usize], last: usize) -> Vec<usize> {
    dims.iter().take(dims.len().saturating_sub(1)).copied().chain([last]).collect()
}
