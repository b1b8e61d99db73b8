//! The product of a linear layer.

use candle_core::{DType, Result, Tensor};
use ddt_kernels::{PackedLinear, linear};

use crate::support::{check_in, error, random, run};

const F32: [(DType, f64); 1] = [(DType::F32, 1e-5)];

fn plain(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.broadcast_matmul(&weight.t()?.contiguous()?)
}

#[test]
fn matches_for_all_kinds_of_sizes() -> Result<()> {
    for (b, l, inputs, outputs) in
        [(1, 1, 1, 1), (2, 16, 24, 40), (1, 3, 700, 5), (3, 50, 33, 64), (1, 15, 64, 130)]
    {
        let tensors = [random(1, &[b, l, inputs])?, random(2, &[outputs, inputs])?, random(3, &[outputs])?];
        check_in(&F32, &tensors[..2], |x| linear(&x[0], &x[1], None), |x| plain(&x[0], &x[1]))?;
        check_in(
            &F32,
            &tensors,
            |x| linear(&x[0], &x[1], Some(&x[2])),
            |x| plain(&x[0], &x[1])?.broadcast_add(&x[2]),
        )?;
    }
    Ok(())
}

#[test]
fn any_number_of_leading_axes_and_any_strides_do() -> Result<()> {
    let inputs = [random(1, &[4, 6])?, random(2, &[4, 3])?];
    let (out, grads) = run(&inputs, |x| linear(&x[0].t()?, &x[1].t()?, None))?;
    assert_eq!(out.dims(), [6, 3]);
    let (want, want_grads) = run(&inputs, |x| x[0].t()?.matmul(&x[1]))?;
    assert!(error(&out, &want)? < 1e-6);
    for (grad, want) in grads.iter().zip(&want_grads) {
        assert!(error(grad, want)? < 1e-6);
    }
    let vector = linear(&random(1, &[4])?, &random(2, &[3, 4])?, None)?;
    assert_eq!(vector.dims(), [3]);
    let empty = linear(&Tensor::zeros((0, 4), DType::F32, out.device())?, &random(2, &[3, 4])?, None)?;
    assert_eq!(empty.dims(), [0, 3]);
    Ok(())
}

#[test]
fn an_input_that_nothing_depends_on_gets_no_gradient() -> Result<()> {
    let x = random(1, &[2, 4])?;
    let weight = candle_core::Var::from_tensor(&random(2, &[3, 4])?)?;
    let grads = linear(&x, weight.as_tensor(), None)?.sum_all()?.backward()?;
    assert!(grads.get(&x).is_none() && grads.get(&weight).is_some());
    Ok(())
}

#[test]
fn packed_layers_match_in_f32_and_bf16_and_give_their_weights_back() -> Result<()> {
    // bf16 is allowed the rounding of one result, half a unit in the last place of 8 bits.
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 4e-3)] {
        for (rows, inputs, outputs) in [(1, 1, 1), (3, 33, 70), (20, 600, 32), (0, 4, 3)] {
            let new = |seed, shape: &[usize]| random(seed, shape)?.to_dtype(dtype);
            let (x, weight) = (new(1, &[1, rows, inputs])?, new(2, &[outputs, inputs])?);
            let bias = new(3, &[outputs])?;
            let packed = PackedLinear::new(&weight, Some(&bias))?;
            let got = packed.forward(&x)?;
            assert_eq!((got.dtype(), got.dims()), (dtype, &[1, rows, outputs][..]));
            let exact = |x: &Tensor| x.to_dtype(DType::F64);
            if rows > 0 {
                let want = plain(&exact(&x)?, &exact(&weight)?)?.broadcast_add(&exact(&bias)?)?;
                let found = error(&got, &want)?;
                assert!(found < tolerance, "{dtype:?}: error {found:e}");
            }
            let back = (exact(&packed.weight()?)? - exact(&weight)?)?.abs()?.max_all()?;
            assert_eq!(back.to_scalar::<f64>()?, 0.0);
        }
    }
    Ok(())
}

#[test]
fn a_packed_layer_passes_the_gradient_of_its_input_on() -> Result<()> {
    let (weight, bias) = (random(2, &[5, 4])?, random(3, &[5])?);
    let packed = PackedLinear::new(&weight, Some(&bias))?;
    check_in(
        &F32,
        &[random(1, &[2, 3, 4])?],
        |x| packed.forward(&x[0]),
        |x| plain(&x[0], &weight.to_dtype(DType::F64)?)?.broadcast_add(&bias.to_dtype(DType::F64)?),
    )
}

#[test]
fn wrong_arguments_are_refused() -> Result<()> {
    let refused = |result: Result<Tensor>, part: &str| {
        let message = result.map_or_else(|error| error.to_string(), |_| "no error".to_owned());
        assert!(message.contains(part), "expected {part:?} in {message:?}");
    };
    let (x, weight) = (random(1, &[2, 4])?, random(2, &[5, 4])?);
    refused(linear(&x, &weight.t()?, None), "expected x of shape (.., 5), got [2, 4]");
    refused(linear(&x, &weight, Some(&x)), "expected bias of shape [5], got [2, 4]");
    refused(linear(&x.to_dtype(DType::BF16)?, &weight.to_dtype(DType::BF16)?, None), "expected x in f32");
    let packed = PackedLinear::new(&weight, None)?;
    refused(packed.forward(&weight.t()?), "expected x of shape (.., 4), got [4, 5]");
    refused(packed.forward(&x.to_dtype(DType::BF16)?), "expected x in F32 on the CPU, got BF16");
    assert!(PackedLinear::new(&weight.to_dtype(DType::F16)?, None).is_err());
    assert!(PackedLinear::new(&weight, Some(&x)).is_err());
    Ok(())
}
