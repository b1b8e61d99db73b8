//! SiLU, SwiGLU and SiLU of a sum.

use candle_core::{Device, Result, Tensor};
use ddt_kernels::{add_silu, silu, swiglu};

use crate::support::{check, plain_silu, random};

#[test]
fn silu_matches() -> Result<()> {
    for shape in [&[1][..], &[3, 5, 7], &[1025], &[2, 20_000]] {
        check(&[random(1, shape)?], |x| silu(&x[0]), |x| plain_silu(&x[0]))?;
    }
    Ok(())
}

#[test]
fn swiglu_matches() -> Result<()> {
    for shape in [&[1][..], &[3, 5, 7], &[40_001]] {
        let inputs = [random(1, shape)?, random(2, shape)?];
        check(&inputs, |x| swiglu(&x[0], &x[1]), |x| plain_silu(&x[0])? * &x[1])?;
    }
    Ok(())
}

#[test]
fn add_silu_matches() -> Result<()> {
    for (b, l, d) in [(2, 5, 24), (3, 1, 7), (2, 130, 33)] {
        for t_rows in [1, l] {
            let inputs = [random(1, &[b, l, d])?, random(2, &[b, t_rows, d])?];
            check(&inputs, |x| add_silu(&x[0], &x[1]), |x| plain_silu(&x[0].broadcast_add(&x[1])?))?;
        }
    }
    Ok(())
}

#[test]
fn extreme_arguments_have_their_limits() -> Result<()> {
    let x = [100.0f32, -100.0, 3e38, -3e38, f32::INFINITY, 0.0, f32::NAN, f32::NEG_INFINITY];
    let y = silu(&Tensor::new(&x, &Device::Cpu)?)?.to_vec1::<f32>()?;
    assert_eq!(y[..6], [100.0, 0.0, 3e38, 0.0, f32::INFINITY, 0.0]);
    assert!(y[6].is_nan() && y[7].is_nan(), "{y:?}");
    Ok(())
}

#[test]
fn gradient_of_silu_agrees_with_finite_differences() -> Result<()> {
    let x = random(3, &[200])?.affine(4.0, 0.0)?;
    let (_, grads) = crate::support::run(std::slice::from_ref(&x), |x| silu(&x[0])?.sum_all())?;
    let h = 0.01;
    let slope = ((silu(&(&x + h)?)? - silu(&(&x - h)?)?)? / (2.0 * h))?;
    // The weighting of a scalar result is one fixed number.
    let weight = random(99, &[])?.to_dtype(candle_core::DType::BF16)?.to_dtype(x.dtype())?;
    let found = crate::support::error(&grads[0], &slope.broadcast_mul(&weight)?)?;
    // Differences of f32 values at distance 0.02 carry about 1e-4.
    assert!(found < 1e-3, "error {found:e}");
    Ok(())
}
