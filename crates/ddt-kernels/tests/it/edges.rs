//! Wrong arguments are errors that say what was expected and got; empty tensors are fine.

use candle_core::{DType, Device, Result, Tensor};
use ddt_kernels::{
    RopeTable, add_silu, attention, gate_residual, layer_norm_modulate, rms_norm_modulate, silu, swiglu,
};

use crate::support::run;

fn zeros(shape: &[usize]) -> Result<Tensor> {
    Tensor::full(0f32, shape, &Device::Cpu)
}

fn refused(result: Result<Tensor>, part: &str) {
    let message = result.map_or_else(|error| error.to_string(), |_| String::from("no error"));
    assert!(message.contains(part), "expected {part:?} in {message:?}");
}

#[test]
fn wrong_shapes_are_refused() -> Result<()> {
    let x = zeros(&[2, 3, 4])?;
    let w = zeros(&[4])?;
    refused(rms_norm_modulate(&w, &w, &x, 0.0), "expected x of shape (B, L, D), got [4]");
    refused(
        rms_norm_modulate(&x, &zeros(&[5])?, &zeros(&[2, 1, 8])?, 0.0),
        "expected weight of shape [4], got [5]",
    );
    refused(
        rms_norm_modulate(&x, &w, &zeros(&[2, 2, 8])?, 0.0),
        "expected shift_scale of shape (2, 1, 8) or (2, 3, 8), got [2, 2, 8]",
    );
    refused(layer_norm_modulate(&x, &zeros(&[2, 1, 4])?, 0.0), "got [2, 1, 4]");
    refused(gate_residual(&x, &zeros(&[1, 1, 4])?, &x), "expected gate of shape (2, 1, 4) or (2, 3, 4)");
    refused(gate_residual(&x, &zeros(&[2, 1, 4])?, &zeros(&[2, 3, 5])?), "expected y of shape [2, 3, 4]");
    refused(add_silu(&x, &zeros(&[2, 4])?), "expected t of shape (2, 1, 4)");
    refused(swiglu(&x, &zeros(&[2, 12])?), "expected b of shape [2, 3, 4]");
    Ok(())
}

#[test]
fn wrong_attention_arguments_are_refused() -> Result<()> {
    let rope = RopeTable::new(zeros(&[3, 4])?, zeros(&[3, 4])?)?;
    let (qkv, w) = (zeros(&[2, 3, 48])?, zeros(&[8])?);
    assert!(attention(&qkv, &w, &w, &rope, 2, 0.0).is_ok());
    refused(attention(&qkv, &w, &w, &rope, 0, 0.0), "N = 0 heads");
    refused(attention(&qkv, &w, &w, &rope, 5, 0.0), "N = 5 heads, got width 48");
    refused(attention(&qkv, &w, &w, &rope, 8, 0.0), "a multiple of 4, got 2");
    refused(attention(&w, &w, &w, &rope, 2, 0.0), "expected qkv of shape (B, L, 3 N K)");
    refused(attention(&qkv, &w, &zeros(&[4])?, &rope, 2, 0.0), "expected k_weight of shape [8], got [4]");
    refused(attention(&zeros(&[2, 5, 48])?, &w, &w, &rope, 2, 0.0), "rope table of 5 tokens and head size 8");
    Ok(())
}

#[test]
fn wrong_dtypes_are_refused() -> Result<()> {
    let x = zeros(&[2, 3, 4])?;
    let half = zeros(&[2, 1, 4])?.to_dtype(DType::F16)?;
    refused(silu(&x.to_dtype(DType::F64)?), "expected x in f32, bf16 or f16, got F64");
    refused(add_silu(&x, &half), "expected t in the dtype of x, F32, got F16");
    Ok(())
}

#[test]
fn empty_tensors_give_empty_results_and_zero_gradients() -> Result<()> {
    for (b, l, d) in [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)] {
        let inputs = [zeros(&[b, l, d])?, zeros(&[d])?, zeros(&[b, 1, 2 * d])?];
        let (out, grads) = run(&inputs, |x| rms_norm_modulate(&x[0], &x[1], &x[2], 1e-6))?;
        assert_eq!(out.dims(), [b, l, d]);
        assert_eq!(grads[1].sum_all()?.to_scalar::<f32>()?, 0.0);
        run(&[inputs[0].clone(), inputs[2].clone()], |x| layer_norm_modulate(&x[0], &x[1], 1e-6))?;
        let row = zeros(&[b, 1, d])?;
        run(&[inputs[0].clone(), row.clone(), inputs[0].clone()], |x| gate_residual(&x[0], &x[1], &x[2]))?;
        run(&[inputs[0].clone(), row], |x| add_silu(&x[0], &x[1]))?;
        run(&[inputs[0].clone()], |x| silu(&x[0]))?;
    }
    for (b, l) in [(0, 3), (2, 0)] {
        let rope = RopeTable::new(zeros(&[l, 4])?, zeros(&[l, 4])?)?;
        let inputs = [zeros(&[b, l, 48])?, zeros(&[8])?, zeros(&[8])?];
        let (out, _) = run(&inputs, |x| attention(&x[0], &x[1], &x[2], &rope, 2, 1e-6))?;
        assert_eq!(out.dims(), [b, l, 16]);
    }
    Ok(())
}
