//! DINOv2 and Inception: wrong weights, odd sizes, batches.

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use ddt_adapters::inception::FoldedInception;
use ddt_adapters::{DinoV2, DinoV2Config, DinoV2Mlp, Inception};
use ddt_files::TensorSource;

use crate::loading::{mismatch, tensors_of};
use crate::testing::{InMemory, random, rel_rms};
use crate::zeros;

#[test]
fn dinov2_in_bf16_is_near_f32() {
    for mlp in [DinoV2Mlp::Gelu, DinoV2Mlp::SwiGlu] {
        let cfg = small(mlp, 4);
        let weights = tensors_of(|vb| DinoV2::new(&cfg, vb), DType::F32);
        let load = |dtype| DinoV2::load(&cfg, &weights, dtype, &Device::Cpu).unwrap();
        let images = random(2, (2, 3, 12, 28));
        let [got, want] = [DType::BF16, DType::F32].map(|dtype| load(dtype).forward(&images).unwrap());
        assert_eq!(got.patch_tokens.dtype(), DType::F32);
        let error = rel_rms(&got.patch_tokens, &want.patch_tokens);
        assert!(error < 2e-2, "{mlp:?}: {error}");
    }
}

fn small(mlp: DinoV2Mlp, num_registers: usize) -> DinoV2Config {
    DinoV2Config {
        hidden_size: 24,
        num_blocks: 2,
        num_heads: 2,
        patch_size: 4,
        position_grid: 5,
        num_registers,
        mlp,
        mlp_ratio: 4,
    }
}

/// A configuration's network in f32, which runs on fused operations, and in f64, which runs on candle's.
fn both(cfg: &DinoV2Config) -> (DinoV2, DinoV2) {
    let weights = tensors_of(|vb| DinoV2::new(cfg, vb), DType::F32);
    let wide = weights.0.iter().map(|(name, it)| (name.clone(), it.to_dtype(DType::F64).unwrap()));
    let wide = VarBuilder::from_tensors(wide.collect(), DType::F64, &Device::Cpu);
    (DinoV2::load(cfg, &weights, DType::F32, &Device::Cpu).unwrap(), DinoV2::new(cfg, wide).unwrap())
}

#[test]
fn every_kind_of_dinov2_agrees_with_plain_operations() {
    for mlp in [DinoV2Mlp::Gelu, DinoV2Mlp::SwiGlu] {
        for registers in [0, 4] {
            let (ours, plain) = both(&small(mlp, registers));
            let images = random(2, (2, 3, 12, 28));
            let (got, want) = (ours.forward(&images).unwrap(), plain.forward(&images).unwrap());
            assert_eq!((got.grid, got.patch_tokens.dims()), ((3, 7), &[2, 21, 24][..]));
            assert!(rel_rms(&got.patch_tokens, &want.patch_tokens) < 1e-5, "{mlp:?} {registers}");
            assert!(rel_rms(&got.class_token, &want.class_token) < 1e-5, "{mlp:?} {registers}");
        }
    }
}

#[test]
fn registers_take_part_and_positions_move_features() {
    let cfg = small(DinoV2Mlp::Gelu, 4);
    let mut weights = tensors_of(|vb| DinoV2::new(&cfg, vb), DType::F32);
    let images = random(2, (1, 3, 8, 8));
    let mut before =
        DinoV2::load(&cfg, &weights, DType::F32, &Device::Cpu).unwrap().forward(&images).unwrap();
    for name in ["register_tokens", "pos_embed", "cls_token"] {
        let shape = weights.0[name].shape().clone();
        weights.0.insert(name.into(), (random(9, shape) * 0.5).unwrap());
        let after = DinoV2::load(&cfg, &weights, DType::F32, &Device::Cpu).unwrap().forward(&images).unwrap();
        assert!(rel_rms(&after.patch_tokens, &before.patch_tokens) > 1e-5, "{name}");
        before = after;
    }
}

#[test]
fn dinov2_takes_sides_in_whole_patches_and_names_others() {
    let (dino, _) = both(&small(DinoV2Mlp::Gelu, 0));
    // 64 x 32 pixels become 56 x 28.
    let features = dino.features(&random(1, (1, 3, 64, 32))).unwrap();
    assert_eq!((features.grid, features.patch_tokens.dims()), ((14, 7), &[1, 98, 24][..]));
    let error = dino.features(&random(1, (1, 3, 64, 35))).unwrap_err().to_string();
    assert!(error.contains("64 x 35") && error.contains("multiples of 4, got 56 x 30"), "{error}");
    for shape in [vec![1, 4, 8, 8], vec![0, 3, 8, 8], vec![1, 3, 0, 8], vec![1, 3, 9, 8], vec![3, 8, 8]] {
        assert!(dino.forward(&random(1, shape.clone())).is_err(), "{shape:?}");
        assert!(dino.features(&random(1, shape.clone())).is_err(), "{shape:?}");
    }
}

#[test]
fn dinov2_does_not_mix_images_and_is_frozen() {
    let (dino, _) = both(&small(DinoV2Mlp::SwiGlu, 4));
    let images = random(5, (3, 3, 160, 160)); // 1,600 patches: two images at once
    let all = dino.forward(&images).unwrap();
    for i in 0..3 {
        let one = dino.forward(&images.narrow(0, i, 1).unwrap()).unwrap();
        assert_eq!(rel_rms(&all.patch_tokens.narrow(0, i, 1).unwrap(), &one.patch_tokens), 0.0);
        assert_eq!(rel_rms(&all.class_token.narrow(0, i, 1).unwrap(), &one.class_token), 0.0);
    }
    let pixels = Var::from_tensor(&random(1, (1, 3, 8, 8))).unwrap();
    let error = dino.forward(pixels.as_tensor()).unwrap_err().to_string();
    assert!(error.contains("depends on no variable"), "{error}");
}

#[test]
fn dinov2_names_all_that_is_wrong() {
    let cfg = small(DinoV2Mlp::SwiGlu, 4);
    let mut weights = tensors_of(|vb| DinoV2::new(&cfg, vb), DType::F32);
    weights.0.insert("mask_token".into(), random(1, (1, 24)));
    DinoV2::load(&cfg, &weights, DType::F32, &Device::Cpu).unwrap();
    weights.0.remove("blocks.1.ls2.gamma").unwrap();
    weights.0.insert("head.weight".into(), random(1, 3));
    weights.0.insert("pos_embed".into(), random(1, (1, 17, 24)));
    assert_eq!(
        mismatch(DinoV2::load(&cfg, &weights, DType::F32, &Device::Cpu)),
        [vec!["blocks.1.ls2.gamma"], vec!["head.weight"], vec!["pos_embed"]]
    );
    // The names of the other kind of feed-forward layer.
    let [missing, unexpected, _] = mismatch(DinoV2::load(
        &DinoV2Config { mlp: DinoV2Mlp::Gelu, ..cfg },
        &weights,
        DType::F32,
        &Device::Cpu,
    ));
    assert!(missing.contains(&"blocks.0.mlp.fc1.weight".to_owned()), "{missing:?}");
    assert!(unexpected.is_empty() || unexpected.contains(&"blocks.0.mlp.w12.weight".to_owned()));
}

/// The network, made once.
fn inception() -> &'static Inception {
    static INCEPTION: OnceLock<Inception> = OnceLock::new();
    INCEPTION.get_or_init(|| {
        Inception::from_folded(&FoldedInception::synthetic(&candle_core::Device::Cpu).unwrap()).unwrap()
    })
}

#[test]
fn spatial_features_are_flattened_row_column_channel() {
    let got = inception().forward(&random(3, (2, 3, 9, 9))).unwrap();
    let flat = got.spatial_flat().unwrap();
    assert_eq!(flat.dims(), [2, 2023]);
    let maps = got.spatial.get(0).unwrap().to_vec3::<f32>().unwrap();
    let rows = flat.to_vec2::<f32>().unwrap();
    for (row, column, channel) in [(0, 1, 0), (3, 0, 5), (16, 16, 6)] {
        assert_eq!(rows[0][(row * 17 + column) * 7 + channel], maps[channel][row][column]);
    }
}

#[test]
fn inception_does_not_mix_images_takes_any_size_and_is_frozen() {
    let inception = inception();
    let pixels = ((random(1, (5, 3, 31, 57)) + 1.0).unwrap() * 127.5).unwrap(); // more than one portion
    let all = inception.forward(&pixels).unwrap();
    assert_eq!((all.pool.dims(), all.spatial.dims()), (&[5, 2048][..], &[5, 7, 17, 17][..]));
    let one = inception.forward(&pixels.narrow(0, 4, 1).unwrap()).unwrap();
    let last = |xs: &Tensor| xs.narrow(0, 4, 1).unwrap();
    assert!(rel_rms(&last(&all.pool), &one.pool) < 1e-6);
    assert!(rel_rms(&last(&all.spatial), &one.spatial) < 1e-6);
    assert!(rel_rms(&last(&all.logits), &one.logits) < 1e-6);
    for shape in [vec![1, 1, 9, 9], vec![0, 3, 9, 9], vec![1, 3, 0, 9], vec![3, 9, 9]] {
        assert!(inception.forward(&random(1, shape.clone())).is_err(), "{shape:?}");
    }
    let pixels = Var::from_tensor(&one_pixel()).unwrap();
    let error = inception.forward(pixels.as_tensor()).unwrap_err().to_string();
    assert!(error.contains("depends on no variable"), "{error}");
}

fn one_pixel() -> Tensor {
    Tensor::full(200f32, (1, 3, 1, 1), &Device::Cpu).unwrap()
}

#[test]
fn inception_names_all_that_is_wrong() {
    let mut weights = zeros::zeros_of(Inception::new);
    let published = ["Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.running_var", "fc.bias"];
    assert!(published.iter().all(|name| weights.info(name).is_some()));
    weights.0.insert("Conv2d_1a_3x3.bn.num_batches_tracked".into(), Tensor::new(1i64, &Device::Cpu).unwrap());
    for name in ["fc.bias", "Mixed_5b.branch_pool.bn.weight"] {
        weights.0.remove(name).unwrap();
    }
    weights.0.insert("AuxLogits.fc.weight".into(), random(1, 3));
    weights.0.insert("Mixed_6a.branch3x3.conv.weight".into(), random(1, (384, 288, 1, 1)));
    assert_eq!(
        mismatch(Inception::load(&weights, &Device::Cpu)),
        [
            vec!["Mixed_5b.branch_pool.bn.weight", "fc.bias"],
            vec!["AuxLogits.fc.weight"],
            vec!["Mixed_6a.branch3x3.conv.weight"],
        ]
    );
    let empty = InMemory(Default::default());
    assert_eq!(mismatch(Inception::load(&empty, &Device::Cpu))[0].len(), 94 * 5 + 2);
}
