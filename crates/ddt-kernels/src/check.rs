//! Checks that several operations share; their messages name the operation and the argument.

use candle_core::{DType, Result, Tensor, bail};

use crate::modulation::Modulation;

/// Fails unless all tensors have the first one's dtype, a supported one, and its device.
pub(crate) fn check_alike(op: &str, tensors: &[(&str, &Tensor)]) -> Result<()> {
    let Some(((first_name, first), others)) = tensors.split_first() else { return Ok(()) };
    if !matches!(first.dtype(), DType::F32 | DType::BF16 | DType::F16) {
        bail!("{op}: expected {first_name} in f32, bf16 or f16, got {:?}", first.dtype());
    }
    for (name, tensor) in others {
        if tensor.dtype() != first.dtype() {
            bail!(
                "{op}: expected {name} in the dtype of {first_name}, {:?}, got {:?}",
                first.dtype(),
                tensor.dtype()
            );
        }
        if !tensor.device().same_device(first.device()) {
            bail!(
                "{op}: expected {name} on the device of {first_name}, {:?}, got {:?}",
                first.device().location(),
                tensor.device().location()
            );
        }
    }
    Ok(())
}

/// The shape of `x` as (B, L, D).
pub(crate) fn dims_bld(op: &str, x: &Tensor) -> Result<(usize, usize, usize)> {
    match x.dims3() {
        Ok(dims) => Ok(dims),
        Err(_) => bail!("{op}: expected x of shape (B, L, D), got {:?}", x.shape()),
    }
}

/// The kind of a modulation, or an error that says which shapes were expected.
pub(crate) fn modulation_of(
    op: &str,
    (name, tensor): (&str, &Tensor),
    (b, l): (usize, usize),
    width: usize,
) -> Result<Modulation> {
    match Modulation::of(tensor, (b, l), width) {
        Some(modulation) => Ok(modulation),
        None => bail!(
            "{op}: expected {name} of shape ({b}, 1, {width}) or ({b}, {l}, {width}), got {:?}",
            tensor.shape()
        ),
    }
}
