//! Norms with shift and scale, and the gated residual.

use candle_core::{Result, Tensor};
use ddt_kernels::{gate_residual, layer_norm_modulate, rms_norm_modulate};

use crate::support::{check, plain_layer_norm, plain_modulate, plain_rms_norm, random, run};

// At least three columns: with fewer, normalising leaves next to no gradient but rounding.
const SHAPES: [(usize, usize, usize); 6] =
    [(3, 16, 64), (2, 1, 24), (2, 130, 33), (5, 7, 3), (70, 3, 16), (1, 64, 257)];
const EPS: f64 = 1e-6;

#[test]
fn rms_norm_modulate_matches() -> Result<()> {
    for (b, l, d) in SHAPES {
        for rows in [1, l] {
            let inputs = [random(1, &[b, l, d])?, random(2, &[d])?, random(3, &[b, rows, 2 * d])?];
            check(
                &inputs,
                |x| rms_norm_modulate(&x[0], &x[1], &x[2], EPS),
                |x| plain_modulate(&plain_rms_norm(&x[0], &x[1], EPS)?, &x[2]),
            )?;
        }
    }
    Ok(())
}

#[test]
fn layer_norm_modulate_matches() -> Result<()> {
    for (b, l, d) in SHAPES {
        for rows in [1, l] {
            let inputs = [random(1, &[b, l, d])?, random(3, &[b, rows, 2 * d])?];
            check(
                &inputs,
                |x| layer_norm_modulate(&x[0], &x[1], EPS),
                |x| plain_modulate(&plain_layer_norm(&x[0], EPS)?, &x[1]),
            )?;
        }
    }
    Ok(())
}

#[test]
fn gate_residual_matches() -> Result<()> {
    for (b, l, d) in SHAPES {
        for rows in [1, l] {
            let inputs = [random(1, &[b, l, d])?, random(2, &[b, rows, d])?, random(3, &[b, l, d])?];
            check(&inputs, |x| gate_residual(&x[0], &x[1], &x[2]), |x| &x[0] + x[1].broadcast_mul(&x[2])?)?;
        }
    }
    Ok(())
}

#[test]
fn a_large_mean_does_not_cancel_the_variance() -> Result<()> {
    let x = (random(1, &[2, 3, 100])? + 1000.0)?;
    let zero = Tensor::zeros((2, 1, 200), x.dtype(), x.device())?;
    let got = layer_norm_modulate(&x, &zero, EPS)?;
    let want = plain_layer_norm(&x.to_dtype(candle_core::DType::F64)?, EPS)?;
    // The mean of numbers near 1000 is known to 6e-5 in f32, against a deviation of about 1.
    assert!(crate::support::error(&got, &want)? < 1e-4);
    Ok(())
}

#[test]
fn strided_inputs_give_the_same_values_and_gradients() -> Result<()> {
    let (b, l, d) = (2, 5, 24);
    let inputs = [random(1, &[l, b, d])?, random(2, &[2 * d])?, random(3, &[b, 2 * d, l])?];
    let op = |x: &[Tensor], copy: bool| {
        let tensors = [x[0].transpose(0, 1)?, x[1].narrow(0, 3, d)?, x[2].transpose(1, 2)?];
        let tensors = if copy {
            tensors.into_iter().map(|x| x.force_contiguous()).collect::<Result<Vec<_>>>()?
        } else {
            tensors.to_vec()
        };
        rms_norm_modulate(&tensors[0], &tensors[1], &tensors[2], EPS)
    };
    let (strided, strided_grads) = run(&inputs, |x| op(x, false))?;
    let (copied, copied_grads) = run(&inputs, |x| op(x, true))?;
    assert_eq!(strided.to_vec3::<f32>()?, copied.to_vec3::<f32>()?);
    for (a, b) in strided_grads.iter().zip(&copied_grads) {
        assert_eq!(a.flatten_all()?.to_vec1::<f32>()?, b.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(())
}
