//! A whole transformer block.

use candle_core::{D, DType, Result, Tensor, Var};
use ddt_kernels::{BlockWeights, RopeTable, transformer_block};

use crate::attention;
use crate::support::{check_in, plain_modulate, plain_rms_norm, plain_silu, random, run};

pub(crate) const EPS: f64 = 1e-6;

/// Input, modulation (one row for `rows` tokens each), and weights in the order of [`BlockWeights`].
pub(crate) fn inputs(
    (b, l): (usize, usize),
    (n, k): (usize, usize),
    f: usize,
    rows: usize,
) -> Result<Vec<Tensor>> {
    let d = n * k;
    let shapes: [&[usize]; 12] = [
        &[b, l, d],
        &[b, rows, 6 * d],
        &[d],
        &[3 * d, d],
        &[k],
        &[k],
        &[d, d],
        &[d],
        &[d],
        &[f, d],
        &[d, f],
        &[f, d],
    ];
    // Products of about unit size, so that no half drowns the other.
    let scaled = |(seed, shape): (usize, &&[usize])| {
        let scale = if shape.len() == 2 { (shape[1] as f64).sqrt().recip() } else { 1.0 };
        random(seed as u64, shape)? * scale
    };
    shapes.iter().enumerate().map(scaled).collect()
}

fn fused(x: &[Tensor], rope: &RopeTable, n: usize) -> Result<Tensor> {
    let weights = BlockWeights {
        norm1: &x[2],
        qkv: &x[3],
        q_norm: &x[4],
        k_norm: &x[5],
        proj_weight: &x[6],
        proj_bias: &x[7],
        norm2: &x[8],
        w1: &x[9],
        w2: &x[10],
        w3: &x[11],
    };
    transformer_block(&x[0], &x[1], &weights, rope, n, EPS)
}

pub(crate) fn plain(x: &[Tensor], rope: &RopeTable, n: usize) -> Result<Tensor> {
    let d = x[0].dim(D::Minus1)?;
    let product = |x: &Tensor, weight: &Tensor| x.broadcast_matmul(&weight.t()?.contiguous()?);
    let part = |first, count| x[1].narrow(D::Minus1, first * d, count * d);
    let y = plain_modulate(&plain_rms_norm(&x[0], &x[2], EPS)?, &part(0, 2)?)?;
    let heads = attention::plain(&product(&y, &x[3])?, &x[4], &x[5], rope, n)?;
    let y = product(&heads, &x[6])?.broadcast_add(&x[7])?;
    let middle = (&x[0] + y.broadcast_mul(&part(2, 1)?)?)?;
    let y = plain_modulate(&plain_rms_norm(&middle, &x[8], EPS)?, &part(3, 2)?)?;
    let y = product(&(plain_silu(&product(&y, &x[9])?)? * product(&y, &x[11])?)?, &x[10])?;
    &middle + y.broadcast_mul(&part(5, 1)?)?
}

#[test]
fn matches_for_rows_of_modulation_per_image_and_per_token() -> Result<()> {
    for ((b, l), (n, k), f) in [((2, 16), (2, 16), 85), ((1, 70), (1, 8), 21), ((3, 1), (2, 4), 5)] {
        let rope = attention::rope(l, k)?;
        for rows in [1, l] {
            let inputs = inputs((b, l), (n, k), f, rows)?;
            check_in(&[(DType::F32, 2e-5)], &inputs, |x| fused(x, &rope, n), |x| plain(x, &rope, n))?;
        }
    }
    Ok(())
}

#[test]
fn two_blocks_with_the_same_weights_add_their_gradients() -> Result<()> {
    let (n, k, l) = (2, 8, 4);
    let rope = attention::rope(l, k)?;
    let inputs = inputs((2, l), (n, k), 24, 1)?;
    let twice = |x: &[Tensor], f: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
        let mut again = x.to_vec();
        again[0] = f(x)?;
        f(&again)
    };
    check_in(
        &[(DType::F32, 5e-5)],
        &inputs,
        |x| twice(x, &|x| fused(x, &rope, n)),
        |x| twice(x, &|x| plain(x, &rope, n)),
    )
}

#[test]
fn a_second_backward_pass_finds_the_same_gradients() -> Result<()> {
    let rope = attention::rope(4, 8)?;
    let vars = inputs((1, 4), (1, 8), 24, 4)?.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let loss = fused(&tensors, &rope, 1)?.sqr()?.sum_all()?;
    let (first, second) = (loss.backward()?, loss.backward()?);
    for var in &vars {
        let bits = |grads: &candle_core::backprop::GradStore| match grads.get(var) {
            Some(grad) => grad.flatten_all()?.to_vec1::<f32>(),
            None => candle_core::bail!("a variable without a gradient"),
        };
        assert_eq!(bits(&first)?, bits(&second)?);
    }
    Ok(())
}

#[test]
fn bits_do_not_depend_on_threads() -> Result<()> {
    let rope = attention::rope(70, 8)?;
    let inputs = inputs((3, 70), (2, 8), 45, 1)?;
    let bits = |threads: usize| {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
        let (out, grads) = pool.install(|| run(&inputs, |x| fused(x, &rope, 2)))?;
        std::iter::once(&out)
            .chain(&grads)
            .map(|x| x.flatten_all()?.to_vec1::<f32>())
            .collect::<Result<Vec<_>>>()
    };
    let one = bits(1)?;
    assert!(one == bits(2)? && one == bits(5)?);
    Ok(())
}

#[test]
fn wrong_arguments_are_refused() -> Result<()> {
    let rope = attention::rope(4, 8)?;
    let good = inputs((1, 4), (1, 8), 24, 1)?;
    let refused = |at: usize, with: Tensor, part: &str| {
        let mut bad = good.clone();
        bad[at] = with;
        let message = fused(&bad, &rope, 1).map_or_else(|error| error.to_string(), |_| "no error".to_owned());
        assert!(message.contains(part), "expected {part:?} in {message:?}");
    };
    refused(0, random(1, &[4, 8])?, "expected x of shape (B, L, D)");
    refused(0, random(1, &[1, 5, 8])?, "got a rope table of head size 8 and 4 tokens");
    refused(1, random(1, &[1, 2, 48])?, "expected modulation of shape (1, 1, 48) or (1, 4, 48)");
    refused(3, random(1, &[8, 24])?, "expected qkv of shape [24, 8], got [8, 24]");
    refused(10, random(1, &[8, 23])?, "expected w2 of shape [8, 24]");
    let half = good.iter().map(|x| x.to_dtype(DType::BF16)).collect::<Result<Vec<_>>>()?;
    assert!(fused(&half, &rope, 1).unwrap_err().to_string().contains("expected x in f32 on the CPU"));
    Ok(())
}
