//! SiT's layers, and blocks without attention.

use candle_core::{Device, Module, Result, Tensor, Var};
use ddt_blocks::{
    FinalLayer, GridConv, MixerBlock, Modulation, SitAttention, SitBlock, SitPatchEmbed, TimestepEmbed,
};

use super::{D, HEADS, check, numbers, part};

/// A condition per image, and one per token.
fn check_block(
    mut vars: Vec<(String, Var)>,
    modulation: impl Fn(&Tensor) -> Result<Modulation>,
    run: impl Fn(&Tensor, &Modulation) -> Result<Tensor>,
) {
    let xs = Var::from_tensor(&numbers(&[2, 6, D], 0.5)).unwrap();
    vars.push(("xs".to_owned(), xs.clone()));
    for tokens in [1, 6] {
        let condition = Var::from_tensor(&numbers(&[2, tokens, D], 0.7)).unwrap();
        let mut vars = vars.clone();
        vars.push(("condition".to_owned(), condition.clone()));
        check(&vars, || run(&xs, &modulation(&condition)?));
    }
}

#[test]
fn sit_block() {
    let (block, vars) = part(|vb| SitBlock::new(D, HEADS, vb));
    check_block(vars, |c| block.modulation(c), |xs, m| block.forward(xs, m));
    let (attention, vars) = part(|vb| SitAttention::new(D, HEADS, vb));
    check(&vars, || attention.forward(&numbers(&[2, 6, D], 0.2)));
}

#[test]
fn blocks_without_attention() {
    let (block, vars) = part(|vb| MixerBlock::convolution(D, vb));
    check_block(vars, |c| block.modulation(c), |xs, m| block.forward(xs, m, (2, 3)));
    let (block, vars) = part(|vb| MixerBlock::mlp(D, vb));
    check_block(vars, |c| block.modulation(c), |xs, m| block.forward(xs, m, (2, 3)));
    let (conv, mut vars) = part(|vb| GridConv::new(D, vb));
    let xs = Var::from_tensor(&numbers(&[2, 6, D], 0.5)).unwrap();
    vars.push(("xs".to_owned(), xs.clone()));
    check(&vars, || conv.forward(&xs, (3, 2)));
}

#[test]
fn sit_embedders_and_final_layer() {
    let (patch, vars) = part(|vb| SitPatchEmbed::new(3, 2, D, 2, vb));
    let latents = numbers(&[2, 3, 4, 4], 0.1);
    check(&vars, || patch.forward(&latents));
    assert!(patch.forward(&numbers(&[2, 3, 4, 6], 0.1)).is_err());
    let (time, vars) = part(|vb| TimestepEmbed::sit(D, vb));
    let t = Tensor::new(&[0.1f32, 0.8], &Device::Cpu).unwrap();
    check(&vars, || time.forward(&t));
    let (last, vars) = part(|vb| FinalLayer::sit(D, 12, vb));
    let (xs, condition) = (numbers(&[2, 3, D], 0.1), numbers(&[2, 3, D], 0.9));
    check(&vars, || last.forward(&xs, &last.shift_scale(&condition)?));
}
