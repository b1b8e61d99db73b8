//! Comparing a fused operation with the same thing written in plain, differentiable candle operations.

use candle_core::{D, DType, Device, Error, Result, Tensor, Var};

/// Numbers in about [-2, 2), the same for the same `seed` everywhere.
pub(crate) fn random(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
    let values: Vec<f32> = (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The result of `f` and its gradients for a fixed, uneven weighting of the result.
pub(crate) fn run(
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<(Tensor, Vec<Tensor>)> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = f(&tensors)?;
    let weights = random(99, out.dims())?.to_dtype(DType::BF16)?.to_dtype(out.dtype())?;
    let grads = (&out * weights)?.sum_all()?.backward()?;
    let gradient = |x| grads.get(x).cloned().ok_or_else(|| Error::msg("an input without a gradient"));
    let grads = tensors.iter().map(gradient).collect::<Result<Vec<_>>>()?;
    Ok((out, grads))
}

/// Root mean square error of `got` relative to that of `want`.
pub(crate) fn error(got: &Tensor, want: &Tensor) -> Result<f64> {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (got.to_dtype(DType::F64)?, want.to_dtype(DType::F64)?);
    let rms = |x: &Tensor| x.sqr()?.mean_all()?.sqrt()?.to_scalar::<f64>();
    Ok(rms(&(got - &want)?)? / rms(&want)?.max(1e-30))
}

/// Fails unless `fused`, in f32, bf16 and f16, gives what `plain` gives in f64 for the same inputs.
///
/// f32 is allowed its rounding over the longest sums here; the half types the rounding of one result, half
/// a unit in the last place of 8 and 11 bits, because everything between is f32.
pub(crate) fn check(
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    check_in(&[(DType::F32, 1e-5), (DType::BF16, 4e-3), (DType::F16, 5e-4)], inputs, fused, plain)
}

/// [`check`] with other dtypes and tolerances.
pub(crate) fn check_in(
    dtypes: &[(DType, f64)],
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    for &(dtype, tolerance) in dtypes {
        let rounded = inputs.iter().map(|x| x.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
        let exact = rounded.iter().map(|x| x.to_dtype(DType::F64)).collect::<Result<Vec<_>>>()?;
        let (out, grads) = run(&rounded, &fused)?;
        let (want, want_grads) = run(&exact, &plain)?;
        assert_eq!(out.dtype(), dtype);
        let found = error(&out, &want)?;
        assert!(found < tolerance, "{dtype:?} result: error {found:e}");
        for (i, (grad, want)) in grads.iter().zip(&want_grads).enumerate() {
            assert_eq!(grad.dtype(), dtype);
            let found = error(grad, want)?;
            assert!(found < tolerance, "{dtype:?} gradient of input {i}: error {found:e}");
        }
    }
    Ok(())
}

pub(crate) fn plain_silu(x: &Tensor) -> Result<Tensor> {
    x / (x.neg()?.exp()? + 1.0)?
}

pub(crate) fn plain_rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&rms)?.broadcast_mul(weight)
}

pub(crate) fn plain_modulate(normed: &Tensor, shift_scale: &Tensor) -> Result<Tensor> {
    let parts = shift_scale.chunk(2, D::Minus1)?;
    normed.broadcast_mul(&(&parts[1] + 1.0)?)?.broadcast_add(&parts[0])
}

pub(crate) fn plain_layer_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    centred.broadcast_div(&deviation)
}
