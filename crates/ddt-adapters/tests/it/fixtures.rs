//! Parity with what PyTorch computed; skipped where the fixtures are absent.

use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use ddt_adapters::{
    Autoencoder, KlAutoencoder, KlConfig, KlDecoder, TinyAutoencoder, TinyDecoder, TinyEncoder, to_rgb8,
};
use ddt_files::{Checkpoint, Prefixed};

use crate::testing::{InMemory, rel_rms};

/// What the fixtures allow for autoencoders.
const TOLERANCE: f64 = 1e-4;

pub(crate) fn fixture(name: &str) -> Option<Checkpoint> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/fixtures");
    let path = Path::new(folder).join(name);
    if !path.exists() {
        // Straight to stderr: the harness would capture a print of a test that passes.
        std::io::stderr().write_all(format!("skipped: {} is absent\n", path.display()).as_bytes()).unwrap();
        return None;
    }
    Some(Checkpoint::open(path).unwrap())
}

pub(crate) fn tensor(fixture: &Checkpoint, name: &str) -> Tensor {
    fixture.tensor(name, &Device::Cpu).unwrap()
}

fn kl_config() -> KlConfig {
    KlConfig {
        block_out_channels: vec![32, 64],
        layers_per_block: 1,
        latent_channels: 4,
        norm_num_groups: 8,
        scaling_factor: 0.18215,
    }
}

fn kl_parity(name: &str) {
    let Some(fixture) = fixture(name) else { return };
    let cfg = kl_config();
    let vae = KlAutoencoder::load(&cfg, &fixture.with_prefix("model."), &Device::Cpu).unwrap();
    let posterior = vae.posterior(&tensor(&fixture, "in.image")).unwrap();
    assert!(rel_rms(&posterior.mean, &tensor(&fixture, "out.mean")) < TOLERANCE);
    assert!(rel_rms(&posterior.logvar, &tensor(&fixture, "out.logvar")) < TOLERANCE);

    let (raw, decoded) = (tensor(&fixture, "in.latent"), tensor(&fixture, "out.decoded"));
    assert!(rel_rms(&vae.decode_raw(&raw).unwrap(), &decoded) < TOLERANCE);
    let scaled = (&raw * cfg.scaling_factor).unwrap();
    assert!(rel_rms(&vae.decode(&scaled).unwrap(), &decoded) < TOLERANCE);
    let encoded = vae.encode(&tensor(&fixture, "in.image")).unwrap();
    assert!(rel_rms(&encoded, &(&posterior.mean * cfg.scaling_factor).unwrap()) < 1e-6);
    let mode = vae.encode_sampled(&tensor(&fixture, "in.image"), &raw.zeros_like().unwrap()).unwrap();
    assert!(rel_rms(&mode, &encoded) < 1e-6);
}

#[test]
fn kl_decoder_alone() {
    let Some(fixture) = fixture("vae_kl.safetensors") else { return };
    let cfg = kl_config();
    let decoder = KlDecoder::load(&cfg, &fixture.with_prefix("model."), &Device::Cpu).unwrap();
    let decoded = decoder.decode_raw(&tensor(&fixture, "in.latent")).unwrap();
    assert!(rel_rms(&decoded, &tensor(&fixture, "out.decoded")) < TOLERANCE);
}

#[test]
fn kl_with_new_names() {
    kl_parity("vae_kl.safetensors");
}

#[test]
fn kl_with_old_names() {
    kl_parity("vae_kl_old_names.safetensors");
}

/// The fixture's weights alone, in `dtype`, without the inputs and outputs.
fn tiny_weights(fixture: &Checkpoint, dtype: DType) -> InMemory {
    let weights =
        fixture.names().into_iter().filter(|name| !name.starts_with("in.") && !name.starts_with("out."));
    InMemory(weights.map(|name| (name.to_owned(), tensor(fixture, name).to_dtype(dtype).unwrap())).collect())
}

#[test]
fn tiny_on_a_photo() {
    let Some(fixture) = fixture("tae_flux2.safetensors") else { return };
    let tiny = TinyAutoencoder::load(&tiny_weights(&fixture, DType::F32), &Device::Cpu).unwrap();
    let photo = tensor(&fixture, "in.image").flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let pixels = ddt_adapters::from_rgb8(&photo, (256, 256), &Device::Cpu).unwrap();
    let (latent, decoded) = (tensor(&fixture, "out.latent"), tensor(&fixture, "out.decoded"));

    assert!(rel_rms(&tiny.encode(&pixels).unwrap(), &latent) < TOLERANCE);
    assert!(rel_rms(&tiny.decoder.decode_raw(&latent).unwrap(), &decoded) < TOLERANCE);
    let ours = tiny.decode(&latent).unwrap();
    assert!(rel_rms(&ours, &decoded.affine(2.0, -1.0).unwrap()) < TOLERANCE);
    // The round trip looks like the photo: within 12 grey levels on average.
    let bytes = to_rgb8(&ours).unwrap();
    let error: f64 = bytes[0].iter().zip(&photo).map(|(&a, &b)| f64::from(a.abs_diff(b))).sum();
    assert!(error / (photo.len() as f64) < 12.0);
}

#[test]
fn tiny_halves_load_alone_under_both_kinds_of_names_and_in_half_precision() {
    let Some(fixture) = fixture("tae_flux2.safetensors") else { return };
    let (latent, decoded) = (tensor(&fixture, "out.latent"), tensor(&fixture, "out.decoded"));
    let half = tiny_weights(&fixture, DType::F16);
    let decoder = TinyDecoder::load(&half, &Device::Cpu).unwrap();
    assert!(rel_rms(&decoder.decode_raw(&latent).unwrap(), &decoded) < 2e-3);

    let encoder = TinyEncoder::load(&half, &Device::Cpu).unwrap();
    let bare_decoder = TinyDecoder::load(&Prefixed::new(&half, "decoder."), &Device::Cpu).unwrap();
    let bare_encoder = TinyEncoder::load(&Prefixed::new(&half, "encoder."), &Device::Cpu).unwrap();
    let small = latent.narrow(2, 0, 4).unwrap().narrow(3, 0, 4).unwrap();
    let pixels = decoder.decode(&small).unwrap();
    assert_eq!(rel_rms(&bare_decoder.decode(&small).unwrap(), &pixels), 0.0);
    assert_eq!(rel_rms(&bare_encoder.encode(&pixels).unwrap(), &encoder.encode(&pixels).unwrap()), 0.0);
}
