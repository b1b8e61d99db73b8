//! Wrong weights and wrong shapes are errors that name everything.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use ddt_adapters::{
    Decode, Encode, KlAutoencoder, KlConfig, KlDecoder, KlEncoder, LoadError, Rgb8Error, TinyAutoencoder,
    TinyConfig, TinyDecoder, TinyEncoder, to_rgb8,
};
use ddt_files::{Checkpoint, FileError};

use crate::testing::{InMemory, random};

/// The tensors that `make` asks for, in `dtype`.
pub(crate) fn tensors_of<T>(
    make: impl FnOnce(VarBuilder) -> candle_core::Result<T>,
    dtype: DType,
) -> InMemory {
    let vars = VarMap::new();
    make(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu)).unwrap();
    let vars = vars.data().lock().unwrap();
    let small = |shape| (random(1, shape) * 0.1).unwrap().to_dtype(dtype).unwrap();
    InMemory(vars.iter().map(|(name, var)| (name.clone(), small(var.shape()))).collect())
}

fn kl_config() -> KlConfig {
    KlConfig {
        block_out_channels: vec![4, 8],
        layers_per_block: 1,
        latent_channels: 2,
        norm_num_groups: 2,
        scaling_factor: 1.0,
    }
}

pub(crate) fn mismatch<T: std::fmt::Debug>(loaded: Result<T, LoadError>) -> [Vec<String>; 3] {
    match loaded {
        Err(LoadError::Checkpoint(FileError::Mismatch { missing, unexpected, misshapen, .. })) => {
            [missing, unexpected, misshapen.into_iter().map(|it| it.name).collect()]
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn kl_names_all_that_is_wrong() {
    let cfg = kl_config();
    let mut weights = tensors_of(|vb| KlAutoencoder::new(&cfg, vb), DType::F32);
    KlAutoencoder::load(&cfg, &weights, DType::F32, &Device::Cpu).unwrap();
    for name in ["encoder.conv_in.bias", "decoder.conv_out.weight"] {
        weights.0.remove(name).unwrap();
    }
    weights.0.insert("quant_conv.bias".into(), random(1, 5));
    weights.0.insert("discriminator.weight".into(), random(1, 5));
    let loaded = KlAutoencoder::load(&cfg, &weights, DType::F32, &Device::Cpu);
    assert_eq!(
        mismatch(loaded),
        [
            vec!["decoder.conv_out.weight", "encoder.conv_in.bias"],
            vec!["discriminator.weight"],
            vec!["quant_conv.bias"],
        ]
    );
    let no_groups = KlConfig { norm_num_groups: 0, ..cfg };
    let refused = KlAutoencoder::load(&no_groups, &weights, DType::F32, &Device::Cpu);
    assert!(matches!(refused, Err(LoadError::Tensor(_))));
}

#[test]
fn kl_halves_read_their_own_tensors() {
    let cfg = kl_config();
    let mut weights = tensors_of(|vb| KlAutoencoder::new(&cfg, vb), DType::F32);
    let both = KlAutoencoder::load(&cfg, &weights, DType::F32, &Device::Cpu).unwrap();
    weights.0.remove("encoder.conv_in.bias").unwrap();
    weights.0.insert("quant_conv.bias".into(), random(1, 5));
    assert_eq!(
        mismatch(KlEncoder::load(&cfg, &weights, DType::F32, &Device::Cpu)),
        [vec!["encoder.conv_in.bias".to_string()], vec![], vec!["quant_conv.bias".to_string()]]
    );
    let decoder = KlDecoder::load(&cfg, &weights, DType::F32, &Device::Cpu).unwrap();
    let latents = random(2, (1, 2, 4, 4));
    let difference =
        crate::testing::rel_rms(&decoder.decode(&latents).unwrap(), &both.decode(&latents).unwrap());
    assert_eq!(difference, 0.0);
    weights.0.remove("post_quant_conv.bias").unwrap();
    weights.0.insert("loss.weight".into(), random(1, 5));
    assert_eq!(
        mismatch(KlDecoder::load(&cfg, &weights, DType::F32, &Device::Cpu)),
        [vec!["post_quant_conv.bias".to_string()], vec!["loss.weight".to_string()], vec![]]
    );
}

#[test]
fn tiny_variants_are_told_by_their_names() {
    let narrow = TinyConfig { width: 12, ..TinyConfig::flux_2() };
    for cfg in [TinyConfig::sd(), TinyConfig::sd3(), TinyConfig::flux_2(), narrow] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let weights = tensors_of(|vb| TinyAutoencoder::new(&cfg, vb), dtype);
            let tiny = TinyAutoencoder::load(&weights, DType::F32, &Device::Cpu).unwrap();
            assert_eq!((tiny.decoder.config(), tiny.encoder.config()), (&cfg, &cfg));
            let latents = tiny.encode(&random(2, (2, 3, 16, 8))).unwrap();
            assert_eq!(latents.dims(), [2, cfg.latent_channels, 2, 1]);
            let pixels = tiny.decode(&latents).unwrap();
            assert_eq!((pixels.dims(), pixels.dtype()), (&[2, 3, 16, 8][..], DType::F32));
        }
    }
}

#[test]
fn tiny_names_all_that_is_wrong() {
    let mut weights = tensors_of(|vb| TinyAutoencoder::new(&TinyConfig::flux_2(), vb), DType::F32);
    weights.0.remove("decoder.4.pool.1.weight").unwrap();
    weights.0.insert("decoder.19.bias".into(), random(1, 4));
    weights.0.insert("decoder.20.weight".into(), random(1, 4));
    weights.0.remove("encoder.1.conv.0.weight").unwrap();
    assert_eq!(
        mismatch(TinyDecoder::load(&weights, DType::F32, &Device::Cpu)),
        [vec!["decoder.4.pool.1.weight"], vec!["decoder.20.weight"], vec!["decoder.19.bias"]]
    );
    let none: Vec<String> = vec![];
    assert_eq!(
        mismatch(TinyEncoder::load(&weights, DType::F32, &Device::Cpu)),
        [vec!["encoder.1.conv.0.weight".to_string()], none.clone(), none]
    );
    let both = mismatch(TinyAutoencoder::load(&weights, DType::F32, &Device::Cpu));
    assert_eq!(both[0], ["decoder.4.pool.1.weight", "encoder.1.conv.0.weight"]);
    let empty = InMemory(Default::default());
    assert!(matches!(
        TinyDecoder::load(&empty, DType::F32, &Device::Cpu),
        Err(LoadError::Unrecognised { .. })
    ));
    assert!(matches!(
        TinyEncoder::load(&empty, DType::F32, &Device::Cpu),
        Err(LoadError::Unrecognised { .. })
    ));
}

#[test]
fn an_absent_file_is_an_error() {
    let loaded = Checkpoint::open("/nonexistent/vae.safetensors").map_err(LoadError::from);
    assert!(loaded.unwrap_err().to_string().contains("/nonexistent/vae.safetensors"));
}

#[test]
fn wrong_shapes_are_errors() {
    let cfg = kl_config();
    let weights = tensors_of(|vb| KlAutoencoder::new(&cfg, vb), DType::F32);
    let vae = KlAutoencoder::load(&cfg, &weights, DType::F32, &Device::Cpu).unwrap();
    assert!(vae.decode(&random(1, (1, 3, 4, 4))).is_err());
    assert!(vae.decode(&random(1, (2, 4, 4))).is_err());
    assert!(vae.encode(&random(1, (1, 3, 5, 4))).is_err());
    assert!(vae.encode(&random(1, (1, 1, 4, 4))).is_err());
    assert!(vae.encoder.encode_sampled(&random(1, (1, 3, 4, 4)), &random(1, (1, 2, 1, 1))).is_err());

    let tiny = tensors_of(|vb| TinyAutoencoder::new(&TinyConfig::sd(), vb), DType::F32);
    let decoder = TinyDecoder::load(&tiny, DType::F32, &Device::Cpu).unwrap();
    let encoder = TinyEncoder::load(&tiny, DType::F32, &Device::Cpu).unwrap();
    assert!(decoder.decode(&random(1, (1, 32, 4, 4))).is_err());
    assert!(encoder.encode(&random(1, (1, 3, 12, 8))).is_err());
}

#[test]
fn a_batch_decodes_as_its_images_do() {
    let tiny = tensors_of(|vb| TinyAutoencoder::new(&TinyConfig::flux_2(), vb), DType::F32);
    let decoder = TinyDecoder::load(&tiny, DType::F32, &Device::Cpu).unwrap();
    let latents = random(3, (70, 32, 4, 4)); // more than one portion of 64
    let all = decoder.decode(&latents).unwrap();
    for i in [0, 63, 64, 69] {
        let one = decoder.decode(&latents.narrow(0, i, 1).unwrap()).unwrap();
        assert!(crate::testing::rel_rms(&all.narrow(0, i, 1).unwrap(), &one) < 1e-5);
    }
}

#[test]
fn a_non_finite_latent_never_becomes_a_picture() {
    let tiny = tensors_of(|vb| TinyAutoencoder::new(&TinyConfig::sd(), vb), DType::F32);
    let decoder = TinyDecoder::load(&tiny, DType::F32, &Device::Cpu).unwrap();
    let cfg = kl_config();
    let weights = tensors_of(|vb| KlAutoencoder::new(&cfg, vb), DType::F32);
    let vae = KlAutoencoder::load(&cfg, &weights, DType::F32, &Device::Cpu).unwrap();
    let decoders: [&dyn Decode; 2] = [&decoder, &vae];
    for decoder in decoders {
        let channels = decoder.latent_channels();
        let mut latents = vec![0.5f32; 2 * channels * 4];
        latents[channels * 4 + 1] = f32::NAN;
        let latents = Tensor::from_vec(latents, (2, channels, 2, 2), &Device::Cpu).unwrap();
        let error = decoder.decode(&latents).unwrap_err().to_string();
        assert!(error.contains("image 1 of the batch has a non-finite latent"), "{error}");
    }
}

#[test]
fn non_finite_pixels_never_become_bytes() {
    let cfg = kl_config();
    let mut weights = tensors_of(|vb| KlAutoencoder::new(&cfg, vb), DType::F32);
    weights.0.insert("decoder.conv_out.bias".into(), Tensor::full(f32::NAN, 3, &Device::Cpu).unwrap());
    let vae = KlAutoencoder::load(&cfg, &weights, DType::F32, &Device::Cpu).unwrap();
    let pixels = vae.decode(&random(1, (1, 2, 2, 2))).unwrap();
    assert!(matches!(to_rgb8(&pixels), Err(Rgb8Error::NotFinite { image: 0, .. })));
}
