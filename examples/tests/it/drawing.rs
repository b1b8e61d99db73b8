//! What is drawn.

use candle_core::{DType, Device, Tensor};
use ddt_examples::cli::Resolution;
use ddt_examples::generate::{Drawn, Interrupted, Item, draw, noise};
use ddt_examples::job::Job;
use ddt_examples::page::SETTINGS_KEY;
use ddt_examples::progress::Cancel;
use ddt_examples::{imagenet, png_file};
use ddt_model::{DdtFile, Description};

use crate::{args, no_hub, out, run};

fn job(line: &[&str]) -> Job {
    let folder = tempfile::tempdir().unwrap();
    Job::prepare(&args(folder.path(), line), Resolution::R256, &no_hub(folder.path())).unwrap()
}

fn drawn(line: &[&str]) -> (Job, Drawn) {
    let job = job(line);
    let model = job.load().unwrap();
    let drawn = draw(&job, &model, &Cancel::default()).unwrap();
    (job, drawn)
}

fn noise_values(job: &Job, items: &[Item]) -> Vec<f32> {
    noise(job, items).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_within_one_level(a: &Drawn, b: &Drawn) {
    assert_eq!(a.images.len(), b.images.len());
    for (index, (a, b)) in a.images.iter().zip(&b.images).enumerate() {
        let most = a.pixels().iter().zip(b.pixels()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(most <= Some(1), "image {index} differs by {most:?} grey levels");
    }
}

#[test]
fn batches_change_no_picture() {
    let line = ["--weights", "demo", "--class", "cat,ship", "--images", "1", "--steps", "2"];
    let with = |batch| [&line[..], &["--batch", batch]].concat();
    let (one_job, one) = drawn(&with("1"));
    let (_, two) = drawn(&with("2"));
    assert_eq!((one.images.len(), one.images[0].width(), one.images[0].height()), (2, 32, 32));
    assert_ne!(one.images[0], one.images[1]);
    assert_within_one_level(&one, &two);

    let items = one_job.items();
    let apart: Vec<f32> = items.iter().flat_map(|item| noise_values(&one_job, &[*item])).collect();
    assert_eq!(noise_values(&one_job, &items), apart);
}

#[test]
fn threads_change_no_picture() {
    let line = ["--weights", "demo", "--class", "cat,ship", "--images", "1", "--steps", "2"];
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (job, drawn) = drawn(&line);
            (noise_values(&job, &job.items()), drawn)
        })
    };
    let ((noise_of_one, one), (noise_of_two, two)) = (on(1), on(2));
    assert_eq!(noise_of_one, noise_of_two);
    assert_within_one_level(&one, &two);
}

#[test]
fn other_classes_and_columns_change_no_picture() {
    let line = ["--weights", "demo", "--steps", "2"];
    let (_, many) = drawn(&[&line[..], &["--class", "3,8", "--images", "2"]].concat());
    let (_, few) = drawn(&[&line[..], &["--class", "8", "--images", "2"]].concat());
    assert_within_one_level(&Drawn { images: many.images[2..].to_vec(), ..many }, &few);

    for rng in ["counter", "torch"] {
        let line = ["--weights", "demo", "--rng", rng, "--class"];
        let (all, one) = (job(&[&line[..], &["0-9"]].concat()), job(&[&line[..], &["truck"]].concat()));
        let last = all.items().into_iter().rev().take(8).rev().collect::<Vec<_>>();
        assert_eq!(last, one.items());
    }
}

#[test]
fn the_same_command_writes_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let line =
        ["--weights", "demo", "--class", "frog", "--images", "2", "--steps", "4", "--share", "uniform:2"];
    let summary = run(folder.path(), &line).unwrap();
    assert!(summary.contains("2 images"), "{summary}");
    assert!(summary.contains("encoder calls 2 of 4 steps (50% saved)"), "{summary}");
    let first = std::fs::read(out(folder.path())).unwrap();
    run(folder.path(), &line).unwrap();
    assert_eq!(std::fs::read(out(folder.path())).unwrap(), first);

    let (_, text) = png_file::read(&out(folder.path())).unwrap();
    assert_eq!(text[0].0, SETTINGS_KEY);
    let settings: serde_json::Value = serde_json::from_str(&text[0].1).unwrap();
    assert_eq!(settings["classes"][0]["name"], "frog");
    assert_eq!(settings["grid"]["num_steps"], 4);
    assert_eq!(settings["sharing"]["recompute_steps"], serde_json::json!([0, 2]));
    assert!(settings["weights"].as_str().unwrap().contains(" 4x4 sha256:"));
    assert!(settings["autoencoder"].as_str().unwrap().starts_with("tiny-flux2 sha256:"));
}

#[test]
fn guidance_may_act_on_some_channels_or_lead_away_from_a_weaker_network() {
    let line = ["--weights", "demo", "--class", "frog", "--images", "1", "--steps", "3"];
    let with = |more: &[&str]| drawn(&[&line[..], more].concat()).1;
    let guided = with(&[]);
    // The demo's latents have 32 channels.
    assert_eq!(with(&["--guided-channels", "32"]).images, guided.images);
    assert_ne!(with(&["--guided-channels", "3"]).images, guided.images);

    // Away from the network itself is nowhere, however strongly.
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/ddt-cifar10.safetensors");
    let plain = with(&["--guidance", "1"]);
    assert_within_one_level(&with(&["--weaker", demo]), &plain);
    assert_ne!(guided.images, plain.images);

    // A file that is another network, and one that draws other latents.
    let folder = tempfile::tempdir().unwrap();
    let encoder = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny-flux2-encoder.safetensors");
    let message = run(folder.path(), &[&line[..], &["--weaker", encoder]].concat()).unwrap_err();
    assert!(message.contains("--weaker") && message.contains("missing"), "{message}");
    let small = folder.path().join("small.safetensors");
    small_network(&small);
    let message =
        run(folder.path(), &[&line[..], &["--weaker", small.to_str().unwrap()]].concat()).unwrap_err();
    assert!(message.contains("expected a network of 32 channels and 10 classes"), "{message}");
    assert!(!out(folder.path()).exists());

    // What it was is part of the picture's settings.
    run(folder.path(), &[&line[..], &["--weaker", demo]].concat()).unwrap();
    let (_, text) = png_file::read(&out(folder.path())).unwrap();
    let settings: serde_json::Value = serde_json::from_str(&text[0].1).unwrap();
    assert!(settings["weaker"].as_str().unwrap().starts_with("sha256:"));
}

/// A network of 4 channels and 2 classes, with weights of zero.
fn small_network(path: &std::path::Path) {
    let config: ddt_model::NetworkConfig = ddt_model::DdtConfig {
        in_channels: 4,
        patch_size: 1,
        hidden_size: 16,
        num_heads: 2,
        num_encoder_blocks: 1,
        num_decoder_blocks: 1,
        num_classes: 2,
    }
    .into();
    let zeros =
        |(name, shape): (String, Vec<usize>)| (name, Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
    let weights = config.parameter_shapes().unwrap().into_iter().map(zeros).collect();
    let description = Description { config, classes: None, latents: None, metadata: Default::default() };
    DdtFile::write(path, &description, &weights).unwrap();
}

#[test]
fn a_request_to_stop_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let args = args(folder.path(), &["--weights", "demo", "--images", "1", "--steps", "3"]);
    let cancel = Cancel::default();
    cancel.request();
    let error = imagenet::run(&args, Resolution::R512, &no_hub(folder.path()), &cancel).unwrap_err();
    assert!(error.is::<Interrupted>(), "{error}");
    assert!(!out(folder.path()).exists());
}

#[test]
fn a_plan_file_serves_the_settings_it_names() {
    use ddt_sharing::{Objective, PlanFile, Similarity, SimilarityFile, optimal_plan};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    let line = ["--weights", "demo", "--class", "0", "--images", "1", "--steps", "5"];
    let planned = job(&line);
    let measured = SimilarityFile {
        made_for: planned.made_for(&planned.weights.identify().unwrap()).unwrap(),
        seed: 0,
        images: 1,
        similarity: Similarity::from_matrix(vec![1.0; 25], 5).unwrap(),
        inner_products: None,
    };
    let best = optimal_plan(&measured.similarity, 2).unwrap();
    let file = PlanFile::new(&measured, Objective::Budget { num_recompute: 2 }, best);
    std::fs::write(&path, file.to_json().unwrap()).unwrap();
    let shared = [&line[..], &["--share", path.to_str().unwrap()]].concat();
    assert!(run(folder.path(), &shared).unwrap().contains("encoder calls 2 of 5 steps"));
    let message = run(folder.path(), &[&shared[..], &["--guidance", "7"]].concat()).unwrap_err();
    assert!(message.contains("guidance.scale 4.0, wanted 7.0") && message.contains("plan.json"), "{message}");
}
