//! The decoder of a representation autoencoder in a pipeline, with the demo's network in front of it.

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use ddt::{
    Opened, PipelineConfig, Request, Source,
    files::write_safetensors,
    hub::{Hub, HubFile, PublishedAutoencoder},
};

use crate::{check, demo, generate, no_hub};

/// Width of the smallest published decoder, which tells the number of heads.
const WIDTH: usize = 768;

/// Numbers that differ from each other.
fn numbers(shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin() * 0.05).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Writes a decoder of one block and 2 x 2 pixels per position, and statistics beside it.
fn write(folder: &Path, channels: usize, grid: usize, var: f64) {
    fs::create_dir_all(folder).unwrap();
    let mut tensors = BTreeMap::new();
    let mut linear = |name: &str, out: usize, inp: usize| {
        tensors.insert(format!("{name}.weight"), numbers(&[out, inp]));
        tensors.insert(format!("{name}.bias"), numbers(&[out]));
    };
    linear("decoder_embed", WIDTH, channels);
    linear("decoder_pred", 12, WIDTH);
    for (name, out, inp) in [
        ("attention.attention.query", WIDTH, WIDTH),
        ("attention.attention.key", WIDTH, WIDTH),
        ("attention.attention.value", WIDTH, WIDTH),
        ("attention.output.dense", WIDTH, WIDTH),
        ("intermediate.dense", 8, WIDTH),
        ("output.dense", WIDTH, 8),
    ] {
        linear(&format!("decoder_layers.0.{name}"), out, inp);
    }
    for name in ["decoder_layers.0.layernorm_before", "decoder_layers.0.layernorm_after", "decoder_norm"] {
        tensors.insert(format!("{name}.weight"), Tensor::ones(WIDTH, DType::F32, &Device::Cpu).unwrap());
        tensors.insert(format!("{name}.bias"), numbers(&[WIDTH]));
    }
    tensors.insert("trainable_cls_token".to_owned(), numbers(&[1, 1, WIDTH]));
    tensors.insert("decoder_pos_embed".to_owned(), numbers(&[1, 1 + grid * grid, WIDTH]));
    write_safetensors(&folder.join("model.pt"), &tensors, &BTreeMap::new()).unwrap();
    let var = Tensor::full(var, (channels, grid, grid), &Device::Cpu).unwrap();
    let statistics = BTreeMap::from([("var".to_owned(), var)]);
    write_safetensors(&folder.join("stat.pt"), &statistics, &BTreeMap::new()).unwrap();
}

fn with_autoencoder(from: &Path) -> PipelineConfig {
    PipelineConfig { autoencoder: Source::new(from), ..demo(1) }
}

#[test]
fn a_network_decodes_with_an_rae_whose_latents_fit() {
    let folder = tempfile::tempdir().unwrap();
    let decoder = folder.path().join("model.pt");
    write(folder.path(), 32, 4, 1.0);
    let config = with_autoencoder(&decoder);
    let made = generate(&config, &Request::new([0], 1));
    assert_eq!((made.images[0].width(), made.images[0].height()), (8, 8));
    assert_eq!(Opened::new(&config, &no_hub()).unwrap().image_size(), (8, 8));
    let source = made.record.pipeline.autoencoder.clone();
    assert_eq!(source.from, Path::new("model.pt"));

    // The hash is of the statistics too, which the images depend on.
    let again = PipelineConfig { autoencoder: Source { from: decoder.clone(), ..source }, ..config.clone() };
    assert_eq!(generate(&again, &Request::new([0], 1)).images, made.images);
    write(folder.path(), 32, 4, 9.0);
    assert_ne!(generate(&config, &Request::new([0], 1)).images, made.images);
    check(&again, &["model.pt with sha256:", "got sha256:"]);
}

#[test]
fn decoders_that_do_not_fit_are_named_before_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let decoder = folder.join("model.pt");
    for (channels, grid) in [(32, 3), (31, 4)] {
        write(folder, channels, grid, 1.0);
        let got = format!("got one of {channels} channels and {grid} x {grid} positions");
        check(&with_autoencoder(&decoder), &["of 32 latent channels and 4 x 4 positions", &got]);
    }
    write(folder, 32, 4, -1.0);
    check(&with_autoencoder(&decoder), &["statistics", "stat.pt", "a finite var of at least 0"]);
    fs::write(folder.join("stat.pt"), "no statistics").unwrap();
    check(&with_autoencoder(&decoder), &["stat.pt", "neither safetensors nor"]);
    fs::remove_file(folder.join("stat.pt")).unwrap();
    check(&with_autoencoder(&decoder), &["decoder of an RAE", "statistics", "stat.pt"]);
}

#[test]
fn published_decoders_are_found_in_the_cache() {
    let config = with_autoencoder(Path::new("rae-dinov2-b-256"));
    check(&config, &["ViTXL_n08/model.pt", "hub's cache", "ddt fetch rae-dinov2-b-256"]);

    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { cache: cache.path().to_owned(), ..no_hub() };
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let autoencoder = PublishedAutoencoder::RaeDinoV2B256;
    let statistics = autoencoder.statistics().unwrap();
    let at = |file: &HubFile| {
        let repository = hub.repository_folder(file);
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), commit).unwrap();
        let path = repository.join("snapshots").join(commit).join(file.file());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    let made = cache.path().join("made");
    write(&made, 32, 4, 1.0);
    fs::copy(made.join("model.pt"), at(&autoencoder.decoder())).unwrap();
    let message = Opened::new(&config, &hub).unwrap_err().to_string();
    assert!(message.contains("imagenet1k/stat.pt"), "{message}");
    fs::copy(made.join("stat.pt"), at(&statistics)).unwrap();
    assert_eq!(Opened::new(&config, &hub).unwrap().image_size(), (8, 8));
}
