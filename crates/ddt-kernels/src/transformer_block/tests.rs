//! The block against its definition, layer by layer.

use candle_core::Var;

use super::*;
use crate::testing::{
    EPS, bits, block_inputs_of_condition as block_inputs, block_of_condition_in, check_in, random, refused,
    rope,
};

/// Fails unless `composed` of the operation and of its reference agree.
///
/// In bf16 the reference rounds where the operation does. Single roundings still fall otherwise, and later ones
/// spread them: to 2e-3, and to 7e-3 after two blocks. Without any rounding a gradient of the query-key norm
/// differs by about 2.1e-2 from both: bf16's own error.
fn check(
    f32_tolerance: f64,
    inputs: &[Tensor],
    n: usize,
    rope: &RopeTable,
    composed: impl Fn(&[Tensor], &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Result<Tensor> + Sync,
) -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, f32_tolerance), (DType::BF16, 1e-2)] {
        let reference = if dtype == DType::BF16 { DType::BF16 } else { DType::F64 };
        check_in(
            &[(DType::F32, tolerance)],
            inputs,
            |x| composed(x, &|x| fused(x, rope, n, dtype)),
            |x| composed(x, &|x| block_of_condition_in(reference, x, rope, n)),
        )?;
    }
    Ok(())
}

fn fused(x: &[Tensor], rope: &RopeTable, n: usize, dtype: DType) -> Result<Tensor> {
    let weights = BlockWeights {
        ada_ln_weight: &x[2],
        ada_ln_bias: &x[3],
        norm1: &x[4],
        qkv: &x[5],
        qkv_bias: x.get(14),
        qk_norm: Some([&x[6], &x[7]]),
        proj_weight: &x[8],
        proj_bias: &x[9],
        norm2: &x[10],
        w1: &x[11],
        w2: &x[12],
        w3: &x[13],
        mlp_biases: x.get(15..18).map(|it| [&it[0], &it[1], &it[2]]),
    };
    transformer_block(&x[0], &x[1], &weights, rope, n, EPS, dtype)
}

#[test]
fn matches_for_rows_of_modulation_per_image_and_per_token() -> Result<()> {
    for ((b, l), (n, k), f) in [((2, 16), (2, 16), 85), ((1, 70), (1, 8), 21), ((3, 1), (2, 4), 5)] {
        let rope = rope(l, k)?;
        for rows in [1, l] {
            let inputs = block_inputs([b, l], [n, k], f, rows)?;
            check(2e-5, &inputs, n, &rope, |x, block| block(x))?;
        }
    }
    Ok(())
}

#[test]
fn matches_with_biases_in_all_layers() -> Result<()> {
    let ((b, l), (n, k), f) = ((2, 16), (2, 16), 85);
    for rows in [1, l] {
        let mut inputs = block_inputs([b, l], [n, k], f, rows)?;
        for (seed, len) in [(20, 3 * n * k), (21, f), (22, n * k), (23, f)] {
            inputs.push(random(seed, &[len])?);
        }
        check(2e-5, &inputs, n, &rope(l, k)?, |x, block| block(x))?;
    }
    Ok(())
}

#[test]
fn two_blocks_with_the_same_weights_add_their_gradients() -> Result<()> {
    let (n, k, l) = (2, 8, 4);
    let rope = rope(l, k)?;
    let inputs = block_inputs([2, l], [n, k], 24, 1)?;
    check(5e-5, &inputs, n, &rope, |x, block| {
        let mut again = x.to_vec();
        again[0] = block(x)?;
        block(&again)
    })
}

#[test]
fn a_second_backward_pass_finds_the_same_gradients() -> Result<()> {
    let rope = rope(4, 8)?;
    let vars =
        block_inputs([1, 4], [1, 8], 24, 4)?.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let loss = fused(&tensors, &rope, 1, DType::F32)?.sqr()?.sum_all()?;
    let (first, second) = (loss.backward()?, loss.backward()?);
    for var in &vars {
        let gradient = |grads: &candle_core::backprop::GradStore| match grads.get(var) {
            Some(grad) => bits(grad),
            None => candle_core::bail!("a variable without a gradient"),
        };
        assert_eq!(gradient(&first)?, gradient(&second)?);
    }
    Ok(())
}

#[test]
fn wrong_arguments_are_refused() -> Result<()> {
    let rope = rope(4, 8)?;
    let good = block_inputs([1, 4], [1, 8], 24, 1)?;
    let refused_with = |at: usize, with: Tensor, part: &str| {
        let mut bad = good.clone();
        bad[at] = with;
        refused(fused(&bad, &rope, 1, DType::F32), part);
    };
    refused_with(0, random(1, &[4, 8])?, "expected x of shape (B, L, D)");
    refused_with(0, random(1, &[1, 5, 8])?, "got a rope table of head size 8 and 4 tokens");
    refused_with(1, random(1, &[1, 2, 8])?, "expected condition of shape (1, 1, 8) or (1, 4, 8)");
    refused_with(2, random(1, &[8, 48])?, "expected ada_ln_weight of shape [48, 8], got [8, 48]");
    refused_with(5, random(1, &[8, 24])?, "expected qkv of shape [24, 8], got [8, 24]");
    refused_with(12, random(1, &[8, 23])?, "expected w2 of shape [8, 24]");
    refused_with(0, good[0].to_dtype(DType::BF16)?, "expected x in f32 on the CPU, got BF16");
    refused_with(1, good[1].to_dtype(DType::BF16)?, "expected condition in the dtype of x, F32, got BF16");
    refused_with(11, good[11].to_dtype(DType::BF16)?, "expected w1 in f32 on the CPU, got BF16");
    refused(fused(&good, &rope, 1, DType::F16), "expected to compute in f32 or bf16, got F16");
    Ok(())
}
