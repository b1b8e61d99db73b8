//! Every part is differentiable end to end, and its gradient is the right one.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use ddt_blocks::{
    AdaLn, Attention, AxialRope2d, Block, FinalLayer, LabelEmbed, PatchEmbed, RmsNorm, SwiGlu, TimestepEmbed,
};

mod baselines;

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
    let rope = AxialRope2d::new(D / HEADS).unwrap().table(2, 3, &Device::Cpu).unwrap();
    vars.push(("xs".to_owned(), xs.clone()));
    vars.push(("condition".to_owned(), condition.clone()));
    check(&vars, || block.forward(&xs, &block.modulation(&condition)?, &rope));
}

#[test]
fn a_condition_an_image_is_the_same_condition_for_every_token() {
    let (block, _) = part(|vb| Block::new(D, HEADS, vb));
    let xs = numbers(&[2, 6, D], 0.5);
    let condition = numbers(&[2, 1, D], 0.7);
    let rope = AxialRope2d::new(D / HEADS).unwrap().table(2, 3, &Device::Cpu).unwrap();
    let run = |c: &Tensor| block.forward(&xs, &block.modulation(c).unwrap(), &rope).unwrap();
    let repeated = condition.broadcast_as((2, 6, D)).unwrap().contiguous().unwrap();
    let largest = |it: Tensor| it.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let (image, token) = (run(&condition), run(&repeated));
    let error = largest((&image - token).unwrap()) / largest(image);
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
fn swiglu_and_ada_ln() {
    let (mlp, vars) = part(|vb| SwiGlu::new(D, 42, vb));
    let xs = numbers(&[2, 3, D], 0.1);
    check(&vars, || mlp.forward(&xs));
    let (ada_ln, vars) = part(|vb| AdaLn::new(D, vb));
    check(&vars, || {
        let it = ada_ln.forward(&xs)?;
        Tensor::cat(&[it.attn_shift_scale, it.attn_gate, it.mlp_shift_scale, it.mlp_gate], 2)
    });
}

#[test]
fn ada_ln_splits_in_the_published_order() {
    let (ada_ln, vars) = part(|vb| AdaLn::new(D, vb));
    let xs = numbers(&[1, 2, D], 0.1);
    let it = ada_ln.forward(&xs).unwrap();
    let parts =
        Tensor::cat(&[it.attn_shift_scale, it.attn_gate, it.mlp_shift_scale, it.mlp_gate], 2).unwrap();
    let var = |name: &str| vars.iter().find(|it| it.0 == name).unwrap().1.as_tensor().clone();
    let whole = xs.reshape((2, D)).unwrap().matmul(&var("0.weight").t().unwrap()).unwrap();
    let whole = whole.broadcast_add(&var("0.bias")).unwrap().reshape((1, 2, 6 * D)).unwrap();
    let error = (whole - parts).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(error < 1e-6, "{error}");
}

#[test]
fn embedders_and_final_layer() {
    let (patch, vars) = part(|vb| PatchEmbed::new(3, 2, D, vb));
    let latents = numbers(&[2, 3, 4, 6], 0.1);
    check(&vars, || patch.forward(&latents));
    let (time, vars) = part(|vb| TimestepEmbed::new(D, vb));
    let t = Tensor::new(&[0.1f32, 0.8], &Device::Cpu).unwrap();
    check(&vars, || time.forward(&t));
    let (label, vars) = part(|vb| LabelEmbed::new(1, D, vb));
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
    let error = (plain - fused).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(error < 1e-5, "{error}");
}
