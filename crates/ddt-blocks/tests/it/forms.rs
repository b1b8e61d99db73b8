//! The forms of a block compute what its definition does.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use ddt_blocks::{
    Block, Form, Frozen, Fused, Linear, Modulation, Plain, TokenGrid, TransformerBlock, WeightedSum,
};

use super::{D, HEADS, numbers, part, relative_rms, scalar};

fn grid() -> TokenGrid {
    TokenGrid::new(2, 3, D / HEADS, &Device::Cpu).unwrap()
}

fn run(block: &impl TransformerBlock, xs: &Tensor, condition: &Tensor) -> Tensor {
    block.forward(xs, &block.modulation(condition).unwrap(), &grid()).unwrap()
}

/// The block's parameters in a dtype, without variables.
fn detached(vars: &[(String, Var)], dtype: DType) -> Block {
    let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
    Block::new(D, HEADS, VarBuilder::from_tensors(tensors, dtype, &Device::Cpu)).unwrap()
}

#[test]
fn a_fused_block_has_the_gradients_of_the_definition() {
    check_fused(part(|vb| Block::new(D, HEADS, vb)));
    for qk_norm in [false, true] {
        check_fused(part(|vb| Block::dit_dh(D, HEADS, 10, qk_norm, vb)));
    }
}

fn check_fused((block, mut vars): (Block, Vec<(String, Var)>)) {
    let fused = Fused::block(block.clone()).unwrap();
    let xs = Var::from_tensor(&numbers(&[2, 6, D], 0.5)).unwrap();
    vars.push(("xs".to_owned(), xs.clone()));
    for tokens in [1, 6] {
        let condition = Var::from_tensor(&numbers(&[2, tokens, D], 0.7)).unwrap();
        vars.push(("condition".to_owned(), condition.clone()));
        let (want, got) = (run(&block, &xs, &condition), run(&fused, &xs, &condition));
        assert!(relative_rms(&got, &want) < 1e-6, "{}", relative_rms(&got, &want));
        let gradients = |ys: &Tensor| scalar(ys).unwrap().backward().unwrap();
        let (want, got) = (gradients(&want), gradients(&got));
        for (name, var) in &vars {
            let error = relative_rms(got.get(var).unwrap(), want.get(var).unwrap());
            assert!(error < 1e-5, "{name}, {tokens} tokens: {error}");
        }
        vars.pop();
    }
}

#[test]
fn a_frozen_block_computes_what_the_definition_does() {
    let (block, vars) = part(|vb| Block::new(D, HEADS, vb));
    let xs = numbers(&[2, 6, D], 0.5);
    for tokens in [1, 6] {
        let condition = numbers(&[2, tokens, D], 0.7);
        let want = run(&block, &xs, &condition).detach();
        // Frozen from variables, or from tensors: no gradient is recorded.
        for block in [block.clone(), detached(&vars, DType::F32)] {
            let got = run(&Frozen::block(block).unwrap(), &xs, &condition);
            assert!(!got.track_op());
            assert!(relative_rms(&got, &want) < 1e-6, "{}", relative_rms(&got, &want));
        }
        let half = |it: &Tensor| it.to_dtype(DType::BF16).unwrap();
        let frozen = Frozen::block(detached(&vars, DType::BF16)).unwrap();
        let got = run(&frozen, &half(&xs), &half(&condition)).to_dtype(DType::F32).unwrap();
        // bf16 keeps 8 bits: one rounding is 2^-9, and there are about a dozen between input and output.
        assert!(relative_rms(&got, &want) < 1e-2, "{}", relative_rms(&got, &want));
    }
}

#[test]
fn frozen_weights_do_not_follow_their_variables() {
    let (block, vars) = part(|vb| Block::new(D, HEADS, vb));
    let frozen = Frozen::block(block).unwrap();
    let (xs, condition) = (numbers(&[2, 6, D], 0.5), numbers(&[2, 1, D], 0.7));
    let before = run(&frozen, &xs, &condition);
    for (_, var) in &vars {
        var.set(&var.affine(2.0, 0.1).unwrap()).unwrap();
    }
    assert_eq!(relative_rms(&run(&frozen, &xs, &condition), &before), 0.0);
}

#[test]
fn plain_and_frozen_blocks_take_the_modulation_of_each_other() {
    let (_, vars) = part(|vb| Block::new(D, HEADS, vb));
    let block = detached(&vars, DType::F32);
    let fused = Fused::block(block.clone()).unwrap();
    let frozen = Frozen::block(block.clone()).unwrap();
    let (xs, condition) = (numbers(&[2, 6, D], 0.5), numbers(&[2, 6, D], 0.7));
    let (parts, joint) = (block.modulation(&condition).unwrap(), frozen.modulation(&condition).unwrap());
    let want = block.forward(&xs, &parts, &grid()).unwrap();
    let got = [block.forward(&xs, &joint, &grid()).unwrap(), frozen.forward(&xs, &parts, &grid()).unwrap()];
    for got in got {
        assert!(relative_rms(&got, &want) < 1e-6, "{}", relative_rms(&got, &want));
    }
    // A fused block reads the condition itself.
    assert!(fused.forward(&xs, &joint, &grid()).is_err());
    // The first rows of a batch are a batch.
    let first = |it: &Tensor| it.narrow(0, 0, 1).unwrap();
    let got = block.forward(&first(&xs), &parts.narrow_batch(1).unwrap(), &grid()).unwrap();
    assert!(relative_rms(&got, &first(&want)) < 1e-6);
}

#[test]
fn forms_that_do_not_exist_are_refused() {
    let (_, vars) = part(|vb| Block::new(D, HEADS, vb));
    for dtype in [DType::BF16, DType::F16] {
        let message = Fused::block(detached(&vars, dtype)).unwrap_err().to_string();
        assert!(message.contains("f32"), "{message}");
    }
    let message = Frozen::block(detached(&vars, DType::F16)).unwrap_err().to_string();
    assert!(message.contains("bf16"), "{message}");
    let linear = Linear::new(4, 4, VarBuilder::zeros(DType::F16, &Device::Cpu)).unwrap();
    assert!(Frozen::linear(linear).is_err());
}

/// A block under a weighted sum of modulations is the block under the modulation of the weighted sum of conditions:
/// the modulation is affine in the condition, and the weights sum to one.
fn check_weighted_sum<F: Form>() {
    let (_, vars) = part(|vb| Block::new(D, HEADS, vb));
    let block = F::block(detached(&vars, DType::F32)).unwrap();
    let xs = numbers(&[2, 6, D], 0.5);
    let conditions = [0.7, 1.7, 2.7].map(|phase| numbers(&[2, 6, D], phase));
    let modulations = conditions.each_ref().map(|it| block.modulation(it).unwrap());
    for weights in [vec![1.0], vec![-0.5, 1.5], vec![0.4, -1.3, 1.9]] {
        let mut condition = conditions[0].zeros_like().unwrap();
        for (weight, it) in weights.iter().zip(&conditions) {
            condition = (condition + (it * *weight).unwrap()).unwrap();
        }
        let terms: Vec<_> = modulations.iter().zip(weights).collect();
        let got = block.forward(&xs, &Modulation::weighted_sum(&terms).unwrap(), &grid()).unwrap();
        let want = run(&block, &xs, &condition);
        assert!(relative_rms(&got, &want) < 1e-5, "{}", relative_rms(&got, &want));
    }
    let four: Vec<_> = modulations.iter().chain(&modulations[..1]).map(|it| (it, 0.25)).collect();
    assert!(block.forward(&xs, &Modulation::weighted_sum(&four).unwrap(), &grid()).is_err());
}

#[test]
fn every_form_of_a_block_reads_a_weighted_sum() {
    check_weighted_sum::<Plain>();
    check_weighted_sum::<Fused>();
    check_weighted_sum::<Frozen>();
    assert!(Modulation::weighted_sum(&[]).is_err() && WeightedSum::of([]).is_err());
}
