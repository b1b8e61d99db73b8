//! Tests of the attention.

use candle_core::{DType, Device, Result, Tensor};

use super::{attention, rotary_attention};
use crate::RopeTable;
use crate::testing::{
    EPS, attention_in, check_in, error, plain_attention, random, refused, rope, run, zeros,
};

/// In bf16 the operands of both matmuls are rounded, queries, keys and probabilities among them.
const DTYPES: [(DType, f64); 3] = [(DType::F32, 1e-5), (DType::BF16, 1e-2), (DType::F16, 5e-4)];

fn inputs(b: usize, l: usize, n: usize, k: usize) -> Result<[Tensor; 3]> {
    Ok([random(1, &[b, l, 3 * n * k])?, random(2, &[k])?, random(3, &[k])?])
}

#[test]
fn matches_for_all_kinds_of_sizes() -> Result<()> {
    // Heads that fill lanes and heads that do not; tokens below, at, above and far above a block.
    let sizes = [
        (2, 16, 3, 32),
        (1, 64, 2, 64),
        (1, 65, 1, 72),
        (2, 9, 2, 24),
        (1, 200, 1, 16),
        (1, 300, 1, 4),
        (3, 5, 1, 12),
    ];
    for (b, l, n, k) in sizes {
        let rope = rope(l, k)?;
        check_in(
            &DTYPES,
            &inputs(b, l, n, k)?,
            |x| attention(&x[0], &x[1], &x[2], &rope, n, EPS),
            |x| plain_attention(&x[0], &x[1], &x[2], &rope, n),
        )?;
    }
    Ok(())
}

#[test]
fn matches_without_norms() -> Result<()> {
    for (b, l, n, k) in [(2, 16, 3, 32), (1, 65, 1, 72), (2, 9, 2, 24), (1, 300, 1, 4)] {
        let rope = rope(l, k)?;
        check_in(
            &DTYPES,
            &[random(1, &[b, l, 3 * n * k])?],
            |x| rotary_attention(&x[0], &rope, n),
            |x| attention_in(x[0].dtype(), &x[0], None, &rope, n),
        )?;
    }
    let qkv = zeros(&[1, 4, 24])?;
    refused(rotary_attention(&qkv, &rope(5, 8)?, 1), "expected a rope table of 4 tokens and head size 8");
    Ok(())
}

#[test]
fn one_token_returns_its_value() -> Result<()> {
    let (b, n, k) = (2, 3, 8);
    let [qkv, q_weight, k_weight] = inputs(b, 1, n, k)?;
    let (out, grads) =
        run(&[qkv.clone(), q_weight, k_weight], |x| attention(&x[0], &x[1], &x[2], &rope(1, k)?, n, EPS))?;
    assert_eq!(out.to_vec3::<f32>()?, qkv.narrow(2, 2 * n * k, n * k)?.to_vec3::<f32>()?);
    let grad = grads[0].narrow(2, 0, 2 * n * k)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(grad < 1e-6, "nothing depends on queries and keys, got a gradient of {grad}");
    Ok(())
}

#[test]
fn gradient_agrees_with_finite_differences() -> Result<()> {
    let (l, n, k) = (6, 1, 8);
    let rope = rope(l, k)?;
    let inputs = inputs(1, l, n, k)?;
    let f = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], &rope, n, EPS);
    let (_, grads) = run(&inputs, f)?;
    let weights = random(99, &[1, l, n * k])?.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
    let value = |x: &[Tensor]| (f(x)? * &weights)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>();
    let h = 1e-2;
    for (which, input) in inputs.iter().enumerate() {
        let values = input.flatten_all()?.to_vec1::<f32>()?;
        let slopes = (0..values.len()).map(|i| {
            let moved = |by: f32| {
                let mut values = values.clone();
                values[i] += by;
                let mut inputs = inputs.clone();
                inputs[which] = Tensor::from_vec(values, input.shape(), &Device::Cpu)?;
                value(&inputs)
            };
            Ok(((moved(h)? - moved(-h)?) / f64::from(2.0 * h)) as f32)
        });
        let slopes = Tensor::from_vec(slopes.collect::<Result<Vec<_>>>()?, input.shape(), &Device::Cpu)?;
        let found = error(&grads[which], &slopes)?;
        // The third derivative contributes about h^2, rounding about 1e-7 / h.
        assert!(found < 5e-3, "input {which}: error {found:e}");
    }
    Ok(())
}

#[test]
fn large_logits_stay_finite() -> Result<()> {
    let (l, n, k) = (70, 2, 16);
    let [qkv, q_weight, k_weight] = inputs(1, l, n, k)?;
    let rope = rope(l, k)?;
    let large = [qkv, (q_weight * 1e3)?, (k_weight * 1e3)?];
    let (out, grads) = run(&large, |x| attention(&x[0], &x[1], &x[2], &rope, n, EPS))?;
    for tensor in std::iter::once(&out).chain(&grads) {
        assert!(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?.is_finite());
    }
    let exact = large.iter().map(|x| x.to_dtype(DType::F64)).collect::<Result<Vec<_>>>()?;
    let want = plain_attention(&exact[0], &exact[1], &exact[2], &rope, n)?;
    // Logits near 1e7 are known to about 1 in f32: all but close ties choose the same key.
    assert!(error(&out, &want)? < 0.3);
    Ok(())
}

#[test]
fn nan_and_infinity_stay_in_their_head_and_image() -> Result<()> {
    let (b, l, n, k) = (2, 20, 2, 8);
    let [qkv, q_weight, k_weight] = inputs(b, l, n, k)?;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for part in 0..3 {
            let mut values = qkv.flatten_all()?.to_vec1::<f32>()?;
            // Image 0, token 3, head 1.
            values[3 * 3 * n * k + part * n * k + k + 2] = bad;
            let poisoned = Tensor::from_vec(values, qkv.shape(), &Device::Cpu)?;
            let out = attention(&poisoned, &q_weight, &k_weight, &rope(l, k)?, n, EPS)?.to_vec3::<f32>()?;
            assert!(out[1].iter().flatten().all(|x| x.is_finite()), "another image");
            assert!(out[0].iter().all(|row| row[..k].iter().all(|x| x.is_finite())), "another head");
            assert!(out[0][3][k..].iter().any(|x| !x.is_finite()), "{bad} in part {part} has vanished");
        }
    }
    Ok(())
}

#[test]
fn thousands_of_tokens_work() -> Result<()> {
    let (l, k) = (4096, 8);
    let [qkv, q_weight, k_weight] = inputs(1, l, 1, k)?;
    let rope = rope(l, k)?;
    let out = attention(&qkv, &q_weight, &k_weight, &rope, 1, EPS)?;
    let want = plain_attention(&qkv, &q_weight, &k_weight, &rope, 1)?;
    // Here the plain operations are in f32 too.
    assert!(error(&out, &want)? < 2e-5);
    Ok(())
}
#[test]
fn wrong_arguments_are_refused_and_empty_tensors_are_fine() -> Result<()> {
    let rope = RopeTable::new(zeros(&[3, 4])?, zeros(&[3, 4])?)?;
    let (qkv, w) = (zeros(&[2, 3, 48])?, zeros(&[8])?);
    assert!(attention(&qkv, &w, &w, &rope, 2, 0.0).is_ok());
    refused(attention(&qkv, &w, &w, &rope, 0, 0.0), "N = 0 heads");
    refused(attention(&qkv, &w, &w, &rope, 5, 0.0), "N = 5 heads, got width 48");
    refused(attention(&qkv, &w, &w, &rope, 8, 0.0), "a multiple of 4, got 2");
    refused(attention(&w, &w, &w, &rope, 2, 0.0), "expected qkv of shape (B, L, 3 N K)");
    refused(attention(&qkv, &w, &zeros(&[4])?, &rope, 2, 0.0), "expected k_weight of shape [8], got [4]");
    refused(attention(&zeros(&[2, 5, 48])?, &w, &w, &rope, 2, 0.0), "rope table of 5 tokens and head size 8");
    for (b, l) in [(0, 3), (2, 0)] {
        let rope = RopeTable::new(zeros(&[l, 4])?, zeros(&[l, 4])?)?;
        let inputs = [zeros(&[b, l, 48])?, zeros(&[8])?, zeros(&[8])?];
        let (out, _) = run(&inputs, |x| attention(&x[0], &x[1], &x[2], &rope, 2, EPS))?;
        assert_eq!(out.dims(), [b, l, 16]);
    }
    Ok(())
}
