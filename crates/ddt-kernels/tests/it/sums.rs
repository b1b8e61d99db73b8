//! Modulations that are weighted sums, against tensors that hold the sums.

use candle_core::{DType, Result, Tensor, Var};
use ddt_kernels::{
    ModulationSource, RopeTable, gate_residual, layer_norm_modulate, packed_block, rms_norm_modulate,
};

use crate::block::{EPS, inputs};
use crate::packed::packed;
use crate::support::{error, plain_layer_norm, plain_modulate, plain_rms_norm, random};

/// Weights of a forecast by two and by three terms, and of one scaled term.
const WEIGHTS: [&[f64]; 3] = [&[1.7, -0.7], &[2.5, -2.25, 0.75], &[0.3]];

/// Tensors in `dtype`, and their sum in f64.
fn terms(weights: &[f64], shape: &[usize], dtype: DType) -> Result<(Vec<Tensor>, Tensor)> {
    let new = |seed| random(20 + seed as u64, shape)?.to_dtype(dtype);
    let tensors = (0..weights.len()).map(new).collect::<Result<Vec<_>>>()?;
    let mut sum = Tensor::zeros(shape, DType::F64, tensors[0].device())?;
    for (tensor, weight) in tensors.iter().zip(weights) {
        sum = (sum + (tensor.to_dtype(DType::F64)? * *weight)?)?;
    }
    Ok((tensors, sum))
}

fn source<'a>(tensors: &'a [Tensor], weights: &[f64]) -> Result<ModulationSource<'a>> {
    ModulationSource::sum(&tensors.iter().zip(weights.iter().copied()).collect::<Vec<_>>())
}

#[test]
fn norms_and_gates_read_a_sum_as_if_it_were_a_tensor() -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 4e-3), (DType::F16, 5e-4)] {
        for (b, l, d) in [(2, 5, 24), (3, 70, 33), (1, 1, 16)] {
            for (rows, weights) in [1, l].into_iter().flat_map(|rows| WEIGHTS.map(|it| (rows, it))) {
                let new = |seed, shape: &[usize]| random(seed, shape)?.to_dtype(dtype);
                let (x, y, weight) = (new(1, &[b, l, d])?, new(2, &[b, l, d])?, new(3, &[d])?);
                let exact = |it: &Tensor| it.to_dtype(DType::F64);
                let (tensors, sum) = terms(weights, &[b, rows, 2 * d], dtype)?;
                let shift_scale = source(&tensors, weights)?;

                let got = rms_norm_modulate(&x, &weight, shift_scale, EPS)?;
                let normed = plain_rms_norm(&exact(&x)?, &exact(&weight)?, EPS)?;
                let found = error(&got, &plain_modulate(&normed, &sum)?)?;
                assert!(got.dtype() == dtype && found < tolerance, "{dtype:?} {weights:?}: {found:e}");

                let got = layer_norm_modulate(&x, shift_scale, EPS)?;
                let found = error(&got, &plain_modulate(&plain_layer_norm(&exact(&x)?, EPS)?, &sum)?)?;
                assert!(got.dtype() == dtype && found < tolerance, "{dtype:?} {weights:?}: {found:e}");

                // The gate is the columns from 3 on.
                let got = gate_residual(&x, shift_scale.from_column(3), &y)?;
                let gate = sum.narrow(2, 3, d)?;
                let found = error(&got, &(exact(&x)? + gate.broadcast_mul(&exact(&y)?)?)?)?;
                assert!(got.dtype() == dtype && found < tolerance, "{dtype:?} {weights:?}: {found:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_block_reads_a_sum_as_if_it_were_a_tensor() -> Result<()> {
    let ((b, l), (n, k), f) = ((2, 16), (2, 16), 85);
    let rope = crate::attention::rope(l, k)?;
    // In bf16 the tensor that holds the sum is rounded, the sum itself is not.
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 1.5e-2)] {
        for (rows, weights) in [1, l].into_iter().flat_map(|rows| WEIGHTS.map(|it| (rows, it))) {
            let x = inputs((b, l), (n, k), f, rows)?;
            let x = x.iter().map(|x| x.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
            let (tensors, sum) = terms(weights, &[b, rows, 7 * n * k], dtype)?;
            let columns = source(&tensors, weights)?.from_column(n * k);
            let got = packed_block(&x[0], columns, &packed(&x)?, &rope, n, EPS)?;
            let sum = sum.narrow(2, n * k, 6 * n * k)?.to_dtype(dtype)?;
            let want = packed_block(&x[0], &sum, &packed(&x)?, &rope, n, EPS)?;
            let found = error(&got, &want)?;
            assert!(found < tolerance, "{dtype:?} {weights:?} {rows} rows: {found:e}");
        }
    }
    Ok(())
}

#[test]
fn one_tensor_with_weight_one_has_the_same_bits_and_a_gradient() -> Result<()> {
    let (x, gate) = (random(1, &[2, 3, 8])?, Var::from_tensor(&random(2, &[2, 3, 20])?)?);
    let columns = ModulationSource::sum(&[(gate.as_tensor(), 1.0)])?.from_column(5);
    let got = gate_residual(&x, columns, &x)?;
    let want = gate_residual(&x, &gate.narrow(2, 5, 8)?, &x)?;
    assert_eq!(got.to_vec3::<f32>()?, want.to_vec3::<f32>()?);
    let grads = got.sum_all()?.backward()?;
    let Some(grad) = grads.get(&gate) else { candle_core::bail!("a gate without a gradient") };
    assert_eq!(error(&grad.narrow(2, 5, 8)?, &x)?, 0.0);
    Ok(())
}

#[test]
fn wrong_sums_are_refused() -> Result<()> {
    let refused = |result: Result<Tensor>, part: &str| {
        let message = result.map_or_else(|error| error.to_string(), |_| "no error".to_owned());
        assert!(message.contains(part), "expected {part:?} in {message:?}");
    };
    let (x, gate) = (random(1, &[2, 3, 8])?, random(2, &[2, 1, 8])?);
    let sum = |terms: &[(&Tensor, f64)]| ModulationSource::sum(terms).map(|_| gate.clone());
    refused(sum(&[]), "expected 1 to 3 terms, got 0");
    refused(sum(&[(&gate, 1.0); 4]), "expected 1 to 3 terms, got 4");
    refused(sum(&[(&gate, 1.0), (&x, 1.0)]), "expected another term of shape [2, 1, 8], got [2, 3, 8]");
    refused(sum(&[(&gate, 1.0), (&gate.to_dtype(DType::F16)?, 1.0)]), "F32, got F16");
    let variable = Var::from_tensor(&gate)?;
    let source = ModulationSource::sum(&[(&gate, 2.0), (variable.as_tensor(), -1.0)])?;
    refused(gate_residual(&x, source, &x), "depend on no variable");
    let source = ModulationSource::sum(&[(&gate, 2.0), (&gate, -1.0)])?;
    refused(gate_residual(&x, source.from_column(1), &x), "with 8 columns from column 1 on");
    refused(layer_norm_modulate(&x, source, EPS), "expected shift_scale of shape (2, 1, 16)");
    let weights = packed(&inputs((2, 3), (1, 8), 24, 1)?)?;
    let rope = RopeTable::new(random(1, &[3, 4])?, random(1, &[3, 4])?)?;
    refused(packed_block(&x, source, &weights, &rope, 1, EPS), "expected modulation of shape (2, 1, 48)");
    Ok(())
}
