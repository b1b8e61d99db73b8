//! Every layer is differentiable end to end, and its gradient is the right one.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use ddt_blocks::{
    Attention, AxialRope2d, Block, FinalLayer, GridConv, LabelEmbed, MixerBlock, Modulation, PatchEmbed,
    ProjectionHead, RmsNorm, SitAttention, SitBlock, SitPatchEmbed, SwiGlu, TimestepEmbed, TokenGrid,
    TransformerBlock,
};

mod forms;

const D: usize = 16;
const HEADS: usize = 2;

/// Reproducible numbers without a generator: the fractional parts of a walk by an irrational step.
fn numbers(shape: &[usize], phase: f64) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> =
        (0..count).map(|i| (2.0 * ((i as f64 + phase) * 0.754_877_666).fract() - 1.0) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A part with all its parameters replaced by [`numbers`], so that none hides behind a zero.
fn part<T>(build: impl FnOnce(VarBuilder) -> Result<T>) -> (T, Vec<(String, Var)>) {
    let map = VarMap::new();
    let part = build(VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu)).unwrap();
    let mut vars: Vec<_> = map.data().lock().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    vars.sort_by(|a, b| a.0.cmp(&b.0));
    for (i, (name, var)) in vars.iter().enumerate() {
        let spread = if name.contains("norm") { 0.2 } else { 0.4 };
        let offset = if name.contains("norm") { 1.0 } else { 0.0 };
        let value = numbers(var.dims(), 1.0 + i as f64).affine(spread, offset).unwrap();
        var.set(&value).unwrap();
    }
    (part, vars)
}

/// A scalar that weighs every output differently.
fn scalar(ys: &Tensor) -> Result<Tensor> {
    (ys * numbers(ys.dims(), 0.3))?.sum_all()
}

fn relative_rms(got: &Tensor, want: &Tensor) -> f64 {
    let square = |it: Tensor| f64::from(it.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
    (square((got - want).unwrap()) / square(want.clone())).sqrt()
}

/// Every variable has a gradient that is not zero and agrees with central differences.
fn check(vars: &[(String, Var)], run: impl Fn() -> Result<Tensor>) {
    let gradients = scalar(&run().unwrap()).unwrap().backward().unwrap();
    for (name, var) in vars {
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} gets no gradient"));
        let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        assert!(gradient.iter().any(|it| *it != 0.0), "{name} gets a gradient of zero");
        let original = var.as_tensor().copy().unwrap();
        let values: Vec<f32> = original.flatten_all().unwrap().to_vec1().unwrap();
        let at = (values.len() * 2) / 3;
        let step = 1e-2;
        let moved = |by: f32| {
            let mut values = values.clone();
            values[at] += by;
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
            f64::from(scalar(&run().unwrap()).unwrap().to_scalar::<f32>().unwrap())
        };
        let difference = (moved(step) - moved(-step)) / f64::from(2.0 * step);
        var.set(&original).unwrap();
        // Central differences in f32: the third derivative times the step squared, and rounding.
        let error = (difference - f64::from(gradient[at])).abs();
        assert!(
            error < 1e-2 + 1e-2 * difference.abs(),
            "{name}: {difference} by differences, {}",
            gradient[at]
        );
    }
}

#[test]
fn block() {
    let (block, mut vars) = part(|vb| Block::new(D, HEADS, vb));
    let xs = Var::from_tensor(&numbers(&[2, 6, D], 0.5)).unwrap();
    let condition = Var::from_tensor(&numbers(&[2, 6, D], 0.7)).unwrap();
    let grid = TokenGrid::new(2, 3, D / HEADS, &Device::Cpu).unwrap();
    vars.push(("xs".to_owned(), xs.clone()));
    vars.push(("condition".to_owned(), condition.clone()));
    check(&vars, || block.forward(&xs, &block.modulation(&condition)?, &grid));
}

#[test]
fn a_condition_per_image_is_the_same_condition_for_every_token() {
    let (block, _) = part(|vb| Block::new(D, HEADS, vb));
    let xs = numbers(&[2, 6, D], 0.5);
    let condition = numbers(&[2, 1, D], 0.7);
    let grid = TokenGrid::new(2, 3, D / HEADS, &Device::Cpu).unwrap();
    let run = |c: &Tensor| block.forward(&xs, &block.modulation(c).unwrap(), &grid).unwrap();
    let repeated = condition.broadcast_as((2, 6, D)).unwrap().contiguous().unwrap();
    let error = relative_rms(&run(&condition), &run(&repeated));
    assert!(error < 1e-5, "{error}");
}

#[test]
fn attention() {
    let (attention, vars) = part(|vb| Attention::new(D, HEADS, vb));
    let rope = AxialRope2d::new(D / HEADS).unwrap().table(2, 2, &Device::Cpu).unwrap();
    let xs = numbers(&[1, 4, D], 0.1);
    check(&vars, || attention.forward(&xs, &rope));
    assert!(Attention::new(D, 3, VarBuilder::zeros(DType::F32, &Device::Cpu)).is_err());
}

#[test]
fn swiglu_and_projection_head() {
    let (mlp, vars) = part(|vb| SwiGlu::new(D, 42, vb));
    let xs = numbers(&[2, 3, D], 0.1);
    check(&vars, || mlp.forward(&xs));
    let (head, vars) = part(|vb| ProjectionHead::new(D, 12, 5, vb));
    check(&vars, || head.forward(&xs));
    let (head, vars) = part(|vb| ProjectionHead::xavier(D, 12, 5, vb));
    check(&vars, || head.forward(&xs));
}

/// The block written out in candle's own operations, from the parameters only.
fn block_by_hand(vars: &[(String, Var)], xs: &Tensor, condition: &Tensor, angles: &Tensor) -> Result<Tensor> {
    let var = |name: &str| vars.iter().find(|it| it.0 == name).unwrap().1.as_tensor().clone();
    let linear = |xs: &Tensor, name: &str| xs.broadcast_matmul(&var(&format!("{name}.weight")).t()?);
    let rms = |xs: &Tensor, name: &str| {
        let root = (xs.sqr()?.mean_keepdim(candle_core::D::Minus1)? + 1e-6)?.sqrt()?;
        xs.broadcast_div(&root)?.broadcast_mul(&var(&format!("{name}.weight")))
    };
    let (b, l, k) = (xs.dim(0)?, xs.dim(1)?, D / HEADS);
    // Pairs of neighbours as complex numbers, times exp(i angle).
    let rotate = |xs: &Tensor| {
        let pairs = xs.reshape((b, HEADS, l, k / 2, 2))?;
        let (re, im) = (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?);
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let real = (re.broadcast_mul(&cos)? - im.broadcast_mul(&sin)?)?;
        let imaginary = (re.broadcast_mul(&sin)? + im.broadcast_mul(&cos)?)?;
        Tensor::stack(&[real, imaginary], 4)?.reshape((b, HEADS, l, k))
    };
    let modulation =
        linear(condition, "adaLN_modulation.0")?.broadcast_add(&var("adaLN_modulation.0.bias"))?;
    let [shift1, scale1, gate1, shift2, scale2, gate2] =
        [0, 1, 2, 3, 4, 5].map(|i| modulation.narrow(2, i * D, D).unwrap());
    let modulate =
        |xs: &Tensor, shift: &Tensor, scale: &Tensor| xs.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift);

    let qkv = linear(&modulate(&rms(xs, "norm1")?, &shift1, &scale1)?, "attn.qkv")?;
    let qkv = qkv.reshape((b, l, 3, HEADS, k))?;
    let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
    let (q, key, v) = (part(0)?, part(1)?, part(2)?);
    let (q, key) = (rotate(&rms(&q, "attn.q_norm")?)?, rotate(&rms(&key, "attn.k_norm")?)?);
    let scores = (q.matmul(&key.t()?)? / (k as f64).sqrt())?;
    let ys = candle_nn::ops::softmax(&scores, 3)?.matmul(&v)?.transpose(1, 2)?.reshape((b, l, D))?;
    let ys = linear(&ys, "attn.proj")?.broadcast_add(&var("attn.proj.bias"))?;
    let xs = (xs + ys.broadcast_mul(&gate1)?)?;

    let ys = modulate(&rms(&xs, "norm2")?, &shift2, &scale2)?;
    let ys = linear(&(linear(&ys, "mlp.w1")?.silu()? * linear(&ys, "mlp.w3")?)?, "mlp.w2")?;
    &xs + ys.broadcast_mul(&gate2)?
}

#[test]
fn block_is_its_formula() {
    let (block, vars) = part(|vb| Block::new(D, HEADS, vb));
    let xs = numbers(&[2, 6, D], 0.5);
    let grid = TokenGrid::new(2, 3, D / HEADS, &Device::Cpu).unwrap();
    // Tokens at x = 0, 8, 16 in rows y = 0, 16; frequencies 1 and 0.01.
    let angles: Vec<f32> = [0f32, 16.0]
        .iter()
        .flat_map(|y| [0f32, 8.0, 16.0].iter().flat_map(move |x| [*x, *y, 0.01 * x, 0.01 * y]))
        .collect();
    let angles = Tensor::from_vec(angles, (1, 1, 6, D / HEADS / 2), &Device::Cpu).unwrap();
    for tokens in [1, 6] {
        let condition = numbers(&[2, tokens, D], 0.7);
        let got = block.forward(&xs, &block.modulation(&condition).unwrap(), &grid).unwrap();
        let want = block_by_hand(&vars, &xs, &condition, &angles).unwrap();
        assert!(relative_rms(&got, &want) < 1e-5, "{}", relative_rms(&got, &want));
    }
}

#[test]
fn embedders_and_final_layer() {
    let (patch, vars) = part(|vb| PatchEmbed::new(3, 2, D, vb));
    let latents = numbers(&[2, 3, 4, 6], 0.1);
    check(&vars, || patch.forward(&latents));
    let (time, vars) = part(|vb| TimestepEmbed::new(D, vb));
    let t = Tensor::new(&[0.1f32, 0.8], &Device::Cpu).unwrap();
    check(&vars, || time.forward(&t));
    let (label, vars) = part(|vb| LabelEmbed::new(2, D, vb));
    let labels = Tensor::new(&[0u32, 1], &Device::Cpu).unwrap();
    check(&vars, || label.forward(&labels));
    assert!(label.forward(&Tensor::new(&[2u32], &Device::Cpu).unwrap()).is_err());
    let (last, vars) = part(|vb| FinalLayer::new(D, 12, vb));
    let (xs, condition) = (numbers(&[2, 3, D], 0.1), numbers(&[2, 3, D], 0.9));
    check(&vars, || last.forward(&xs, &last.shift_scale(&condition)?));
}

#[test]
fn rms_norm_agrees_with_its_fused_form() {
    let (norm, vars) = part(|vb| RmsNorm::new(D, vb));
    let (xs, shift_scale) = (numbers(&[2, 3, D], 0.1), numbers(&[2, 1, 2 * D], 0.6));
    check(&vars, || norm.forward(&xs));
    let (shift, scale) = (shift_scale.narrow(2, 0, D).unwrap(), shift_scale.narrow(2, D, D).unwrap());
    let plain = norm.forward(&xs).unwrap().broadcast_mul(&(scale + 1.0).unwrap()).unwrap();
    let plain = plain.broadcast_add(&shift).unwrap();
    let fused = norm.forward_modulated(&xs, &shift_scale).unwrap();
    let error = relative_rms(&fused, &plain);
    assert!(error < 1e-5, "{error}");
}

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
    let grid = TokenGrid::new(2, 3, D / HEADS, &Device::Cpu).unwrap();
    let (block, vars) = part(|vb| MixerBlock::convolution(D, vb));
    check_block(vars, |c| block.modulation(c), |xs, m| block.forward(xs, m, &grid));
    let (block, vars) = part(|vb| MixerBlock::mlp(D, vb));
    check_block(vars, |c| block.modulation(c), |xs, m| block.forward(xs, m, &grid));
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

#[test]
fn layers_of_dit_dh() {
    let grid = TokenGrid::with_rope(2, 3, AxialRope2d::rows_first(D / HEADS).unwrap(), &Device::Cpu).unwrap();
    for qk_norm in [false, true] {
        let (block, vars) = part(|vb| Block::dit_dh(D, HEADS, 10, qk_norm, vb));
        assert_eq!(vars.iter().any(|it| it.0.starts_with("attn.q_norm")), qk_norm);
        check_block(vars, |c| block.modulation(c), |xs, m| block.forward(xs, m, &grid));
    }
    let (patch, vars) = part(|vb| PatchEmbed::convolution(3, 1, D, vb));
    check(&vars, || patch.forward(&numbers(&[2, 3, 2, 3], 0.1)));
    let (time, vars) = part(|vb| TimestepEmbed::gaussian(D, vb));
    check(&vars, || time.forward(&Tensor::new(&[0.1f32, 0.8], &Device::Cpu)?));
    let (last, vars) = part(|vb| FinalLayer::dit_dh(D, 12, vb));
    let (xs, condition) = (numbers(&[2, 3, D], 0.1), numbers(&[2, 3, D], 0.9));
    check(&vars, || last.forward(&xs, &last.shift_scale(&condition)?));
}
