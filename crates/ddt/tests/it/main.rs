//! The pipeline with the demo weights: refused settings here, images in `generating`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod generating;
mod rae;

use std::{fs, ops::ControlFlow, path::Path};

use candle_core::Device;
use ddt::{
    Error, Generated, Opened, Pipeline, PipelineConfig, Request, Result, Sharing, Source,
    files::{Checkpoint, write_safetensors},
    flow::{Guidance, TimeGrid},
    hub::{Hub, Release},
    model::DdtConfig,
    sharing::SharingPlan,
};

/// A hub that has nothing in its cache and may not be asked.
fn no_hub() -> Hub {
    Hub { cache: "absent".into(), endpoint: "https://hub.invalid".to_owned(), token: None, offline: true }
}

/// The demo with few steps.
fn demo(steps: usize) -> PipelineConfig {
    PipelineConfig {
        grid: Some(TimeGrid::new(steps, Some(0.04), 1.0).unwrap()),
        ..PipelineConfig::new("demo")
    }
}

fn load(config: &PipelineConfig) -> Result<Pipeline> {
    Opened::new(config, &no_hub())?.load()
}

fn generate(config: &PipelineConfig, request: &Request) -> Generated {
    load(config).unwrap().generate(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// An error and its causes, from the outside in.
fn chain(error: &Error) -> String {
    format!("{error:?}")
}

/// The demo's network as a file.
fn demo_file(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("ddt-cifar10.safetensors");
    std::fs::write(&path, ddt_demo::NETWORK).unwrap();
    path
}

#[track_caller]
fn check(config: &PipelineConfig, expected: &[&str]) {
    let message = chain(&load(config).unwrap_err());
    for part in expected {
        assert!(message.contains(part), "expected {part:?} in {message:?}");
    }
}

fn weights(path: &Path) -> PipelineConfig {
    PipelineConfig { weights: Source::new(path), ..demo(1) }
}

#[test]
fn files_that_are_not_there_or_not_right() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    check(&weights(&folder.join("absent.ckpt")), &["absent.ckpt", "expected demo, ddt-xl2-256"]);
    check(&weights(folder), &["a folder without a file", "name a file"]);
    let vae = |path: &Path| PipelineConfig { autoencoder: Source::new(path), ..demo(1) };
    check(&vae(&folder.join("absent.vae")), &["absent.vae", "autoencoder"]);
    let text = folder.join("text");
    std::fs::write(&text, "these are no weights").unwrap();
    check(&weights(&text), &["neither safetensors nor"]);
    check(&vae(&text), &["autoencoder", "neither safetensors nor"]);
    let guiding = |path: &Path| PipelineConfig { guiding_network: Some(Source::new(path)), ..demo(1) };
    check(&guiding(&text), &["guiding network", "neither safetensors nor"]);
    check(&guiding(&folder.join("absent")), &["guiding network", "absent"]);

    // The demo as a file, cut short.
    let cut = folder.join("cut");
    for length in [100, ddt_demo::NETWORK.len() - 1000] {
        std::fs::write(&cut, &ddt_demo::NETWORK[..length]).unwrap();
        check(&weights(&cut), &["cut", "it is cut short"]);
    }
    // Weights that are no network, or of unknown sizes or latents.
    let encoder = folder.join("encoder");
    std::fs::write(&encoder, ddt_demo::TINY_ENCODER).unwrap();
    check(&weights(&encoder), &["name them, one of ddt-b2-8en4de"]);
    check(&guiding(&encoder), &["guiding network", "missing"]);
    let sizes = |name: &str| Some(DdtConfig::preset(name).unwrap().into());
    let b2 = PipelineConfig { network: sizes("ddt-b2"), ..weights(&encoder) };
    check(&b2, &["sd-vae-ft-ema", "hub's cache", "ddt fetch sd-vae-ft-ema"]);
    let odd = PipelineConfig { image_size: Some((250, 256)), ..b2 };
    check(&odd, &["multiples of 16", "250 x 256"]);
    check(&PipelineConfig { network: sizes("ddt-b2"), ..demo(1) }, &["ddt-b2-8en4de", "leave the sizes out"]);
    load(&weights(&demo_file(folder))).unwrap();
}

/// The demo's network in two files with an index, as large networks are published.
fn sharded(folder: &Path) {
    let file = Checkpoint::from_bytes(ddt_demo::NETWORK, "the demo").unwrap();
    let names = file.names();
    let mut parts = serde_json::Map::new();
    for (number, names) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let part = format!("model-0000{}-of-00002.safetensors", number + 1);
        let tensor = |name: &&str| ((*name).to_owned(), file.tensor(name, &Device::Cpu).unwrap());
        let tensors = names.iter().map(tensor).collect();
        write_safetensors(&folder.join(&part), &tensors, &Default::default()).unwrap();
        parts.extend(names.iter().map(|name| ((*name).to_owned(), part.clone().into())));
    }
    let index = serde_json::json!({ "metadata": file.metadata(), "weight_map": parts });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn weights_in_several_files_are_opened_by_their_folder() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sharded(folder);
    let request = Request::new([0], 1);
    let [whole, by_folder, by_index] =
        [demo(1), weights(folder), weights(&folder.join("model.safetensors.index.json"))]
            .map(|it| generate(&it, &request));
    assert_eq!(by_folder.images, whole.images);
    let hash = |it: &Generated| it.record.pipeline.weights.sha256.clone().unwrap();
    assert_eq!(hash(&by_folder), hash(&by_index));
    assert_ne!(hash(&by_folder), hash(&whole));

    // A part of other numbers, one that is cut short, and one that is not there.
    let second = folder.join("model-00002-of-00002.safetensors");
    let good = fs::read(&second).unwrap();
    let mut other = good.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&second, other).unwrap();
    let expected = Source { sha256: Some(hash(&by_folder)), ..Source::new(folder) };
    check(&PipelineConfig { weights: expected, ..demo(1) }, &["with sha256:", "got sha256:"]);
    fs::write(&second, &good[..good.len() - 1]).unwrap();
    check(&weights(folder), &["model-00002-of-00002.safetensors", "it is cut short"]);
    fs::remove_file(&second).unwrap();
    check(&weights(folder), &["part `model-00002-of-00002.safetensors` is missing", "download all of them"]);
}

#[test]
fn settings_that_do_not_fit_the_weights() {
    let strong = Guidance::new(4.0, (0.0, 1.0)).unwrap();
    let guided = Some(strong.with_channels(99.try_into().unwrap()));
    check(&PipelineConfig { guidance: guided, ..demo(1) }, &["at most 32 guided channels", "99"]);
    let plan = Sharing::File("plan.json".into());
    let three = Some(strong.with_channels(3.try_into().unwrap()));
    check(&PipelineConfig { guidance: three, sharing: plan.clone(), ..demo(1) }, &["plan files are made"]);
    check(&PipelineConfig { sharing: plan, ..demo(1) }, &["plan.json", "uniform:R"]);
    check(
        &PipelineConfig { sharing: Sharing::Plan(SharingPlan::every_step(9).unwrap()), ..demo(3) },
        &["sharing"],
    );
}

#[test]
fn requests_that_do_not_fit_the_weights() {
    let opened = Opened::new(&demo(1), &no_hub()).unwrap();
    let refuse = |request: &Request| opened.check(request).unwrap_err().to_string();
    assert!(refuse(&Request::new([3, 10], 1)).contains("0..=9"));
    assert!(refuse(&Request::new([], 1)).contains("at least one class"));
    assert!(refuse(&Request { batch: 0, ..Request::new([0], 1) }).contains("batch"));
    assert!(refuse(&Request::new([0], 0)).contains("1 to 1000000"));
    opened.check(&Request::new([0], 5000)).unwrap();
    let message = chain(&opened.check_page(&Request::new([0], 5000)).unwrap_err());
    assert!(message.contains("do not fit on one page"), "{message}");
}

#[test]
fn published_weights_that_were_not_fetched_name_the_command() {
    let release = Release::DdtXl2R512;
    let error = load(&PipelineConfig::new("ddt-xl2-512")).unwrap_err();
    assert!(matches!(error, Error::NotFetched { .. }), "{error}");
    assert!(error.to_string().contains("ddt fetch ddt-xl2-512"), "{error}");

    // With only the network present, the message names the autoencoder.
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { cache: cache.path().to_owned(), ..no_hub() };
    let repository = hub.repository_folder(&release.network());
    let commit = "0123456789abcdef0123456789abcdef01234567";
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    let snapshot = repository.join("snapshots").join(commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(snapshot.join("model.ckpt"), ddt_demo::NETWORK).unwrap();
    let nameless = Opened::new(&PipelineConfig::new("ddt-xl2-512"), &hub);
    // The demo's file replaces the network and states its own autoencoder.
    assert!(nameless.is_ok());
    let config =
        PipelineConfig { autoencoder: Source::new("sd-vae-ft-ema"), ..PipelineConfig::new("ddt-xl2-512") };
    let message = Opened::new(&config, &hub).unwrap_err().to_string();
    assert!(message.contains("sd-vae-ft-ema") && message.contains("ddt fetch ddt-xl2-512"), "{message}");
}
