//! Comparison with PyTorch and diffusers, and further properties of the networks.

use candle_core::{DType, Device, Tensor};
use ddt_adapters::{
    Decode, Encode, KlAutoencoder, KlConfig, KlDecoder, TinyAutoencoder, TinyDecoder, TinyEncoder, from_rgb8,
    to_rgb8,
};
use ddt_files::Renamed;
use ddt_parity::{Fixture, check, golden, relative_rms};

use crate::testing::InMemory;

#[test]
fn networks_give_what_pytorch_gives() {
    for kind in ["vae_kl", "tae", "dinov2", "inception", "rae_encode", "rae_decode"] {
        check(kind).unwrap();
    }
}

fn error(got: &Tensor, want: &Tensor) -> f64 {
    relative_rms(got, want).unwrap()
}

#[test]
fn kl_latents_are_scaled_and_its_decoder_loads_without_the_encoder() {
    let fixture = golden("vae_kl").unwrap();
    let cfg: KlConfig = fixture.json("config").unwrap();
    let weights = fixture.checkpoint().with_prefix("model.");
    let vae = KlAutoencoder::load(&cfg, &weights, DType::F32, &Device::Cpu).unwrap();
    let (image, raw) = (fixture.tensor("in.image").unwrap(), fixture.tensor("in.latent").unwrap());
    let decoded = vae.decoder.decode_raw(&raw).unwrap();
    let scaled = (&raw * cfg.scaling_factor).unwrap();
    assert!(error(&vae.decode(&scaled).unwrap(), &decoded) < 1e-5);
    let encoded = vae.encode(&image).unwrap();
    let mean = (vae.encoder.posterior(&image).unwrap().mean * cfg.scaling_factor).unwrap();
    assert!(error(&encoded, &mean) < 1e-6);
    let mode = vae.encoder.encode_sampled(&image, &raw.zeros_like().unwrap()).unwrap();
    assert!(error(&mode, &encoded) < 1e-6);
    let decoder = KlDecoder::load(&cfg, &weights, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(error(&decoder.decode_raw(&raw).unwrap(), &decoded), 0.0);
}

/// The weights without the inputs and outputs beside them, in `dtype`.
fn tiny_weights(fixture: &Fixture, dtype: DType) -> InMemory {
    let names = fixture.checkpoint().names().into_iter();
    let weights = names.filter(|name| !name.starts_with("in.") && !name.starts_with("out."));
    let read = |name: &str| fixture.tensor(name).unwrap().to_dtype(dtype).unwrap();
    InMemory(weights.map(|name| (name.to_owned(), read(name))).collect())
}

#[test]
fn tiny_pixels_are_those_of_the_files_in_another_range() {
    let fixture = golden("tae_flux2").unwrap();
    let tiny = TinyAutoencoder::load(&tiny_weights(&fixture, DType::F32), DType::F32, &Device::Cpu).unwrap();
    let photo = fixture.tensor("in.image").unwrap();
    let (height, width, _) = photo.dims3().unwrap();
    let bytes: Vec<u8> = photo.flatten_all().unwrap().to_vec1().unwrap();
    let pixels = from_rgb8(&bytes, (height, width), &Device::Cpu).unwrap();
    let (latent, decoded) = (fixture.tensor("out.latent").unwrap(), fixture.tensor("out.decoded").unwrap());
    assert!(error(&tiny.encode(&pixels).unwrap(), &latent) < 1e-5);
    assert!(error(&tiny.decode(&latent).unwrap(), &decoded.affine(2.0, -1.0).unwrap()) < 1e-5);
}

#[test]
fn tiny_halves_load_alone_under_both_kinds_of_names_and_in_half_precision() {
    let fixture = golden("tae_flux2").unwrap();
    let (latent, decoded) = (fixture.tensor("out.latent").unwrap(), fixture.tensor("out.decoded").unwrap());
    let half = tiny_weights(&fixture, DType::F16);
    let decoder = TinyDecoder::load(&half, DType::F32, &Device::Cpu).unwrap();
    assert!(error(&decoder.decode_raw(&latent).unwrap(), &decoded) < 5e-3);

    let encoder = TinyEncoder::load(&half, DType::F32, &Device::Cpu).unwrap();
    let bare_decoder =
        TinyDecoder::load(&Renamed::without_prefix(&half, "decoder."), DType::F32, &Device::Cpu).unwrap();
    let bare_encoder =
        TinyEncoder::load(&Renamed::without_prefix(&half, "encoder."), DType::F32, &Device::Cpu).unwrap();
    let pixels = decoder.decode(&latent).unwrap();
    assert_eq!(error(&bare_decoder.decode(&latent).unwrap(), &pixels), 0.0);
    assert_eq!(error(&bare_encoder.encode(&pixels).unwrap(), &encoder.encode(&pixels).unwrap()), 0.0);
}

/// The share of bytes that differ by at most one grey level.
fn within_one_level(got: &Tensor, want: &Tensor) -> f64 {
    let bytes = |pixels: &Tensor| to_rgb8(pixels).unwrap().concat();
    let (got, want) = (bytes(got), bytes(want));
    let near = got.iter().zip(&want).filter(|(a, b)| a.abs_diff(**b) <= 1).count();
    near as f64 / want.len() as f64
}

#[test]
fn kl_in_bf16_gives_the_pixels_and_moments_of_f32() {
    let fixture = golden("vae_kl").unwrap();
    let (cfg, weights) = (fixture.json("config").unwrap(), fixture.checkpoint().with_prefix("model."));
    let load = |dtype| KlAutoencoder::load(&cfg, &weights, dtype, &Device::Cpu).unwrap();
    let (half, full) = (load(DType::BF16), load(DType::F32));
    let latent = fixture.tensor("in.latent").unwrap();
    let [got, want] = [&half, &full].map(|it| it.decoder.decode_raw(&latent).unwrap());
    assert_eq!(got.dtype(), DType::F32);
    assert!(within_one_level(&got, &want) >= 0.99, "{}", within_one_level(&got, &want));
    let image = fixture.tensor("in.image").unwrap();
    let [got, want] = [&half, &full].map(|it| it.encoder.posterior(&image).unwrap().mean);
    assert!(error(&got, &want) < 2e-2, "{}", error(&got, &want));
}

#[test]
fn tiny_in_bf16_computes_in_f32() {
    let fixture = golden("tae_flux2").unwrap();
    let weights = tiny_weights(&fixture, DType::F32);
    let load = |dtype| TinyAutoencoder::load(&weights, dtype, &Device::Cpu).unwrap();
    let (half, full, latent) = (load(DType::BF16), load(DType::F32), fixture.tensor("out.latent").unwrap());
    let pixels = full.decode(&latent).unwrap();
    assert_eq!(error(&half.decode(&latent).unwrap(), &pixels), 0.0);
    assert_eq!(error(&half.encode(&pixels).unwrap(), &full.encode(&pixels).unwrap()), 0.0);
}
