//! The representation autoencoder: wrong weights, other sizes, statistics, agreement with plain operations.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddt_adapters::{
    Decode, DinoV2, DinoV2Config, DinoV2Mlp, Encode, LatentSpace, LoadError, Rae, RaeDecoder,
    RaeDecoderConfig, RaeEncoder, RaeEncoderConfig, RaeStatistics,
};
use ddt_files::{Checkpoint, Renamed};

use crate::loading::{mismatch, tensors_of};
use crate::testing::{InMemory, random, rel_rms};

fn decoder_config() -> RaeDecoderConfig {
    RaeDecoderConfig {
        latent_channels: 6,
        grid: 3,
        hidden_size: 24,
        num_blocks: 2,
        num_heads: 3,
        mlp_width: 20,
        patch_size: 4,
    }
}

fn decoder_weights() -> InMemory {
    tensors_of(|vb| RaeDecoder::new(&decoder_config(), None, vb), DType::F32)
}

fn decoder(weights: &InMemory, statistics: Option<RaeStatistics>, dtype: DType) -> RaeDecoder {
    RaeDecoder::load(&decoder_config(), weights, statistics, dtype, &Device::Cpu).unwrap()
}

fn encoder_config() -> RaeEncoderConfig {
    let dino = DinoV2Config {
        hidden_size: 6,
        num_blocks: 2,
        num_heads: 2,
        patch_size: 4,
        position_grid: 5,
        num_registers: 4,
        mlp: DinoV2Mlp::Gelu,
        mlp_ratio: 4,
    };
    RaeEncoderConfig { dino, input_size: 12, downscale: 4 }
}

fn encoder_weights() -> InMemory {
    tensors_of(|vb| DinoV2::new(&encoder_config().dino, vb), DType::F32)
}

fn statistics() -> RaeStatistics {
    RaeStatistics::new(Some(&random(5, (6, 3, 3))), &random(6, (6, 3, 3)).sqr().unwrap()).unwrap()
}

#[test]
fn the_decoder_agrees_with_plain_operations_and_bf16_is_near() {
    let weights = decoder_weights();
    let wide = weights.0.iter().map(|(name, it)| (name.clone(), it.to_dtype(DType::F64).unwrap()));
    let wide = VarBuilder::from_tensors(wide.collect(), DType::F64, &Device::Cpu);
    let plain = RaeDecoder::new(&decoder_config(), None, wide).unwrap();
    for grid in [(3, 3), (5, 2)] {
        let latents = random(2, (2, 6, grid.0, grid.1));
        let want = plain.decode_raw(&latents).unwrap();
        assert_eq!((want.dims(), want.dtype()), (&[2, 3, 12, 12][..], DType::F32));
        for (dtype, limit) in [(DType::F32, 1e-5), (DType::BF16, 1e-2)] {
            let error = rel_rms(&decoder(&weights, None, dtype).decode_raw(&latents).unwrap(), &want);
            assert!(error < limit, "{grid:?} {dtype:?}: {error}");
        }
    }
}

#[test]
fn pixels_are_in_the_order_of_images_and_in_the_range_of_the_trait() {
    let (decoder, latents) =
        (decoder(&decoder_weights(), Some(statistics()), DType::F32), random(3, (2, 6, 3, 3)));
    let (raw, pixels) = (decoder.decode_raw(&latents).unwrap(), decoder.decode(&latents).unwrap());
    assert!(rel_rms(&pixels, &raw.affine(2.0, -1.0).unwrap()) < 1e-6);
    assert!(pixels.permute((0, 2, 3, 1)).unwrap().is_contiguous());
    assert_eq!((decoder.latent_channels(), decoder.downscale()), (6, 4));
}

#[test]
fn both_halves_undo_the_same_statistics() {
    let (source, cfg) = (encoder_weights(), encoder_config());
    let load = |statistics| RaeEncoder::load(&cfg, &source, statistics, DType::F32, &Device::Cpu).unwrap();
    let rae = Rae {
        encoder: load(Some(statistics())),
        decoder: decoder(&decoder_weights(), Some(statistics()), DType::F32),
    };
    let image = random(1, (2, 3, 12, 12));
    let latents = rae.encode(&image).unwrap();
    assert_eq!((latents.dims(), rae.latent_channels(), rae.downscale()), (&[2, 6, 3, 3][..], 6, 4));
    let zero_to_one = image.affine(0.5, 0.5).unwrap();
    assert!(rel_rms(&rae.encoder.encode_raw(&zero_to_one).unwrap(), &latents) < 1e-6);
    let features = load(None).encode(&image).unwrap();
    assert!(rel_rms(&rae.decoder.features(&latents).unwrap(), &features) < 1e-5);
    assert_eq!(rae.decode(&latents).unwrap().dims(), [2, 3, 12, 12]);
    // Any size is resized to the network's, as the trait does not.
    let wide = random(1, (1, 3, 9, 20)).affine(0.5, 0.5).unwrap();
    assert_eq!(rae.encoder.encode_raw(&wide).unwrap().dims(), [1, 6, 3, 3]);
    for shape in [(1, 3, 24, 24), (1, 3, 12, 24), (1, 3, 9, 20)] {
        assert!(rae.encode(&random(1, shape)).is_err(), "{shape:?}");
    }
}

#[test]
fn the_last_norm_of_the_encoder_has_no_weight_and_bias() {
    let (mut source, cfg) = (encoder_weights(), encoder_config());
    let encode = |source: &InMemory| {
        let encoder = RaeEncoder::load(&cfg, source, None, DType::F32, &Device::Cpu).unwrap();
        encoder.encode_raw(&random(1, (1, 3, 12, 12))).unwrap()
    };
    let before = encode(&source);
    for name in ["norm.weight", "norm.bias"] {
        source.0.insert(name.into(), random(9, 6));
        assert_eq!(rel_rms(&encode(&source), &before), 0.0, "{name}");
    }
    let of_channels = before.mean(1).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(of_channels < 1e-5, "{of_channels}");
}

#[test]
fn names_of_hugging_face_are_those_of_the_same_network() {
    let (own, cfg) = (encoder_weights(), encoder_config());
    let mut others = std::collections::BTreeMap::new();
    for (name, tensor) in &own.0 {
        if let Some((block, end)) = name.split_once(".attn.qkv.") {
            let block = block.replace("blocks.", "encoder.layer.");
            for (i, part) in ["query", "key", "value"].into_iter().enumerate() {
                let part = format!("{block}.attention.attention.{part}.{end}");
                others.insert(part, tensor.narrow(0, 6 * i, 6).unwrap());
            }
            continue;
        }
        let ends = [("cls_token", "embeddings.cls_token"), ("register_tokens", "embeddings.register_tokens")];
        let more = [("pos_embed", "embeddings.position_embeddings"), ("blocks.", "encoder.layer.")];
        let rest = [
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            (".attn.proj.", ".attention.output.dense."),
            (".ls1.gamma", ".layer_scale1.lambda1"),
            (".ls2.gamma", ".layer_scale2.lambda1"),
        ];
        let mut renamed = name.clone();
        if renamed.starts_with("norm.") {
            renamed = renamed.replacen("norm.", "layernorm.", 1);
        }
        for (from, to) in ends.into_iter().chain(more).chain(rest) {
            renamed = renamed.replace(from, to);
        }
        others.insert(renamed, tensor.clone());
    }
    let mut others = InMemory(others);
    others.0.insert("embeddings.mask_token".into(), random(1, (1, 6)));
    let images = random(2, (1, 3, 8, 16));
    let run =
        |source| DinoV2::load(&cfg.dino, source, DType::F32, &Device::Cpu).map(|it| it.forward(&images));
    let [want, got] = [&own, &others].map(|it| run(it).unwrap().unwrap().patch_tokens);
    assert_eq!(rel_rms(&got, &want), 0.0);
    others.0.remove("encoder.layer.1.attention.attention.key.bias").unwrap();
    others.0.insert("pooler.dense.bias".into(), random(1, 6));
    let key = "encoder.layer.1.attention.attention.key.bias";
    let loaded = DinoV2::load(&cfg.dino, &others, DType::F32, &Device::Cpu);
    assert_eq!(mismatch(loaded), [vec![key], vec!["pooler.dense.bias"], vec![]]);
}

#[test]
fn the_decoder_names_all_that_is_wrong() {
    let mut weights = decoder_weights();
    // What a trainer may leave beside the decoder is not read.
    weights.0.insert("mask_token".into(), random(1, 3));
    decoder(&weights, None, DType::F32);
    weights.0.remove("decoder_layers.1.intermediate.dense.weight").unwrap();
    weights.0.insert("decoder_layers.2.output.dense.bias".into(), random(1, 24));
    weights.0.insert("trainable_cls_token".into(), random(1, (1, 1, 25)));
    let loaded = RaeDecoder::load(&decoder_config(), &weights, None, DType::F32, &Device::Cpu);
    assert_eq!(
        mismatch(loaded),
        [
            vec!["decoder_layers.1.intermediate.dense.weight"],
            vec!["decoder_layers.2.output.dense.bias"],
            vec!["trainable_cls_token"],
        ]
    );
}

#[test]
fn the_sizes_of_a_decoder_are_read_off_its_tensors() {
    let weights = decoder_weights();
    assert_eq!(RaeDecoderConfig::of(&weights, Some(3)).unwrap(), decoder_config());
    // No published decoder has this width.
    assert!(matches!(RaeDecoderConfig::of(&weights, None), Err(LoadError::Unrecognised { .. })));
    let absent = RaeDecoderConfig::of(&InMemory(Default::default()), None);
    assert!(matches!(absent, Err(LoadError::Unrecognised { .. })));
    for preset in
        [RaeDecoderConfig::vit_b(), RaeDecoderConfig::vit_l(), RaeDecoderConfig::vit_xl().with_grid(32)]
    {
        preset.validate().unwrap();
        let one = RaeDecoderConfig { num_blocks: 1, ..preset };
        let zeros = crate::zeros::zeros_of(|vb| RaeDecoder::new(&one, None, vb));
        assert_eq!(RaeDecoderConfig::of(&zeros, None).unwrap(), one);
    }
    for wrong in [
        RaeDecoderConfig { num_heads: 5, ..decoder_config() },
        RaeDecoderConfig { grid: 0, ..decoder_config() },
    ] {
        assert!(wrong.validate().is_err(), "{wrong:?}");
    }
    RaeEncoderConfig::dinov2_b_256().validate().unwrap();
    assert_eq!(RaeEncoderConfig::dinov2_b_512().grid(), 32);
    assert!(RaeEncoderConfig { input_size: 225, ..RaeEncoderConfig::dinov2_b_256() }.validate().is_err());
}

#[test]
fn latents_of_another_size_than_the_statistics_are_refused() {
    let weights = decoder_weights();
    let decoder = decoder(&weights, Some(statistics()), DType::F32);
    for shape in [(1, 6, 4, 4), (1, 6, 3, 4), (1, 5, 3, 3)] {
        assert!(decoder.decode_raw(&random(1, shape)).is_err(), "{shape:?}");
        assert!(decoder.decode(&random(1, shape)).is_err(), "{shape:?}");
    }
    let plain = self::decoder(&weights, None, DType::F32);
    assert!(plain.decode(&random(1, (1, 6, 4, 4))).unwrap_err().to_string().contains("(B, 6, 3, 3)"));
    let nan = Tensor::full(f32::NAN, (1, 6, 3, 3), &Device::Cpu).unwrap();
    assert!(plain.decode(&nan).unwrap_err().to_string().contains("non-finite"));
    let other = RaeStatistics::new(None, &random(1, (6, 4, 4)).sqr().unwrap()).unwrap();
    let loaded = RaeDecoder::load(&decoder_config(), &weights, Some(other.clone()), DType::F32, &Device::Cpu);
    assert!(loaded.unwrap_err().to_string().contains("statistics (6, 3, 3), got (6, 4, 4)"));
    let loaded =
        RaeEncoder::load(&encoder_config(), &encoder_weights(), Some(other), DType::F32, &Device::Cpu);
    assert!(loaded.unwrap_err().to_string().contains("statistics (6, 3, 3)"));
}

#[test]
fn statistics_may_lack_a_mean_but_no_variance() {
    // PyTorch wrote it, with None as the mean.
    let file = Checkpoint::open(ddt_parity::folder().join("rae_stat.pt")).unwrap();
    let without = RaeStatistics::load(&file, &Device::Cpu).unwrap();
    assert_eq!(without.size(), (10, 3));
    let cfg = RaeDecoderConfig { latent_channels: 10, ..decoder_config() };
    let weights = tensors_of(|vb| RaeDecoder::new(&cfg, None, vb), DType::F32);
    let decoder = RaeDecoder::load(&cfg, &weights, Some(without), DType::F32, &Device::Cpu).unwrap();
    let latents = random(1, (1, 10, 3, 3));
    let std = (file.tensor("var", &Device::Cpu).unwrap() + 1e-5).unwrap().sqrt().unwrap();
    let want = latents.broadcast_mul(&std).unwrap();
    assert!(rel_rms(&decoder.features(&latents).unwrap(), &want) < 1e-6);

    let renamed = Renamed::new(&file, |_| Some("mean".to_owned())).unwrap();
    let error = RaeStatistics::load(&renamed, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("`var`"), "{error}");
    let (good, negative) = (random(1, (2, 3, 3)), Tensor::full(-1f32, (2, 3, 3), &Device::Cpu).unwrap());
    let infinite = Tensor::full(f32::INFINITY, (2, 3, 3), &Device::Cpu).unwrap();
    let square = good.sqr().unwrap();
    for (mean, var) in [
        (&good, &negative),
        (&good, &infinite),
        (&infinite, &square),
        (&random(1, (2, 3, 4)), &square),
        (&random(1, (2, 3, 4)), &random(1, (2, 3, 4)).sqr().unwrap()),
        (&random(1, (2, 9)), &square),
    ] {
        assert!(RaeStatistics::new(Some(mean), var).is_err(), "{:?} {:?}", mean.shape(), var.shape());
    }
}
