//! Which images are made.

use std::{ops::ControlFlow, path::Path};

use candle_core::{DType, Device, Tensor};
use ddt::{
    Error, Generated, Image, Pipeline, PipelineConfig, Record, Request, Sharing, Source,
    flow::{Guidance, NoiseSource, TimeGrid},
    model::{DdtConfig, DdtFile, Description, NetworkConfig},
    picture::{Rgb8, read_png},
    sharing::{Objective, PlanFile, Similarity, SimilarityFile, optimal_plan},
};

use crate::{chain, demo, demo_file, generate, load};

fn values(pipeline: &Pipeline, images: &[Image], rng: NoiseSource) -> Vec<f32> {
    pipeline.noise(images, 0, rng).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_within_one_level(got: &[Rgb8], expected: &[Rgb8]) {
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let most = got.as_bytes().iter().zip(expected.as_bytes()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(most <= Some(1), "image {index} differs by {most:?} grey levels");
    }
}

/// The page that this very test once made; its images are those of the first version of the demo.
#[test]
fn the_demo_generates_the_images_it_always_did() {
    let generated = generate(&PipelineConfig::new("demo"), &Request::new([7, 8], 1));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/demo.png");
    let (golden, _) = read_png(&path).unwrap();
    assert_within_one_level(&[generated.page().unwrap()], &[golden]);
}

#[test]
fn another_sampler_of_loaded_weights_is_that_of_new_ones() {
    let loaded = load(&demo(5)).unwrap();
    let other = PipelineConfig {
        solver: "adams2".parse().unwrap(),
        guidance: Some(Guidance::new(2.0, (0.2, 0.9)).unwrap()),
        sharing: "uniform:2".parse().unwrap(),
        grid: Some(TimeGrid::new(4, None, 2.0).unwrap()),
        ..loaded.config().clone()
    };
    let request = Request::new([5], 1);
    let pipeline = loaded.with_sampler(&other).unwrap();
    let generated = pipeline.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(generated.png().unwrap(), generate(&other, &request).png().unwrap());
    assert_eq!(generated.images, pipeline.decode(&generated.latents).unwrap());
    assert_eq!(pipeline.plan().unwrap().num_recompute(), 2);
    // Omitted guidance is the loaded one's.
    let same = loaded.with_sampler(&PipelineConfig { guidance: None, ..other.clone() }).unwrap();
    assert_eq!(same.config().guidance, loaded.config().guidance);

    let refused = |config: PipelineConfig| chain(&loaded.with_sampler(&config).unwrap_err());
    let named = refused(PipelineConfig { weights: Source::new("other"), ..other.clone() });
    assert!(named.contains("solver, grid, guidance and sharing only"), "{named}");
    let channels = Guidance::none().with_channels(100.try_into().unwrap());
    assert!(
        refused(PipelineConfig { guidance: Some(channels), ..other.clone() }).contains("guided channels")
    );
    let plan = Sharing::Plan(ddt::sharing::SharingPlan::uniform(9, 3).unwrap());
    assert!(refused(PipelineConfig { sharing: plan, ..other }).contains("of 4 steps, got 9"));
}

#[test]
fn batches_threads_and_other_images_change_no_image() {
    let config = demo(2);
    let request = Request { batch: 1, ..Request::new([3, 8], 2) };
    let one = generate(&config, &request);
    assert_eq!((one.images.len(), one.images[0].width(), one.images[0].height()), (4, 32, 32));
    assert_ne!(one.images[0], one.images[1]);
    let three = generate(&config, &Request { batch: 3, ..request.clone() });
    assert_within_one_level(&three.images, &one.images);
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_within_one_level(&pool.install(|| generate(&config, &request)).images, &one.images);
    }
    let few = generate(&config, &Request::new([8], 1));
    assert_within_one_level(&few.images, &one.images[2..3]);

    let pipeline = load(&config).unwrap();
    for rng in [NoiseSource::Counter, NoiseSource::Torch] {
        let images = request.images();
        let apart: Vec<f32> = images.iter().flat_map(|it| values(&pipeline, &[*it], rng)).collect();
        assert_eq!(values(&pipeline, &images, rng), apart);
    }
}

#[test]
fn the_same_record_makes_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = PipelineConfig { sharing: "uniform:2".parse().unwrap(), ..demo(4) };
    let first = generate(&config, &Request::new([6], 2));
    assert_eq!((first.report.calls.encoder, first.report.calls.decoder), (2, 4));
    assert!(first.summary().contains("encoder calls 2 of 4 steps (50% saved)"), "{}", first.summary());
    let path = folder.path().join("a.png");
    std::fs::write(&path, first.png().unwrap()).unwrap();

    let record = Record::read(&path).unwrap();
    assert_eq!((&record, record.class_names.as_slice()), (&first.record, &["frog".to_owned()][..]));
    assert_eq!(record.pipeline.guidance, Some(Guidance::new(4.0, (0.0, 1.0)).unwrap()));
    assert_eq!(record.pipeline.image_size, Some((32, 32)));
    assert!(record.pipeline.weights.is("demo") && record.pipeline.weights.sha256.is_some());
    assert!(record.pipeline.autoencoder.is("tiny-flux2") && record.pipeline.autoencoder.sha256.is_some());
    let again = generate(&record.pipeline, &record.request);
    assert_eq!(again.png().unwrap(), std::fs::read(&path).unwrap());

    // Other weights under the same name are refused, naming both hashes.
    let mut other = record.pipeline.clone();
    let hash = other.weights.sha256.replace("00".repeat(32)).unwrap();
    let message = chain(&load(&other).unwrap_err());
    assert!(message.contains(&hash) && message.contains(&"00".repeat(32)), "{message}");
    std::fs::write(&path, ddt::picture::encode_png(&first.images[0], &[]).unwrap()).unwrap();
    assert!(chain(&Record::read(&path).unwrap_err()).contains("no record"));
}

#[test]
fn a_file_of_the_demo_is_the_demo_and_its_record_names_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = demo_file(folder.path());
    let request = Request::new([0], 1);
    let (bundled, file) = (
        generate(&demo(1), &request),
        generate(&PipelineConfig { weights: Source::new(&path), ..demo(1) }, &request),
    );
    assert_eq!(file.images, bundled.images);
    assert_eq!(file.record.pipeline.weights.from, Path::new("ddt-cifar10.safetensors"));
    assert_eq!(file.record.pipeline.weights.sha256, bundled.record.pipeline.weights.sha256);
    assert!(!file.record.to_json().unwrap().contains(folder.path().to_str().unwrap()));
}

#[test]
fn guidance_may_act_on_some_channels_or_lead_away_from_a_guiding_network() {
    let folder = tempfile::tempdir().unwrap();
    let request = Request::new([6], 1);
    let with = |guidance: Guidance, guiding_network: Option<Source>| -> Generated {
        generate(&PipelineConfig { guidance: Some(guidance), guiding_network, ..demo(3) }, &request)
    };
    let strong = Guidance::new(4.0, (0.0, 1.0)).unwrap();
    let channels = |count: usize| strong.with_channels(count.try_into().unwrap());
    let guided = with(strong, None);
    // The demo's latents have 32 channels.
    assert_eq!(with(channels(32), None).images, guided.images);
    assert_ne!(with(channels(3), None).images, guided.images);

    // Away from the network itself is nowhere, however strongly.
    let own = Source::new(demo_file(folder.path()));
    let plain = with(Guidance::new(1.0, (0.0, 1.0)).unwrap(), None);
    let nowhere = with(strong, Some(own));
    assert_within_one_level(&nowhere.images, &plain.images);
    assert_ne!(guided.images, plain.images);
    assert!(nowhere.record.pipeline.guiding_network.unwrap().sha256.is_some());

    // One that generates other latents.
    let small = folder.path().join("small.safetensors");
    small_network(&small);
    let config = PipelineConfig { guiding_network: Some(Source::new(&small)), ..demo(3) };
    let message = chain(&load(&config).unwrap_err());
    assert!(message.contains("expected a network of 32 channels and 10 classes"), "{message}");
}

/// A network of 4 channels and 2 classes, with weights of zero.
fn small_network(path: &Path) {
    let small =
        DdtConfig { hidden_size: 16, num_heads: 2, num_classes: 2, ..DdtConfig::preset("ddt-b2").unwrap() };
    let config: NetworkConfig =
        DdtConfig { patch_size: 1, num_encoder_blocks: 1, num_decoder_blocks: 1, ..small }.into();
    let zeros =
        |(name, shape): (String, Vec<usize>)| (name, Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
    let weights = config.parameter_shapes().unwrap().into_iter().map(zeros).collect();
    let description = Description { config, classes: None, latents: None, metadata: Default::default() };
    DdtFile::write(path, &description, &weights).unwrap();
}

#[test]
fn a_watcher_sees_every_step_and_may_stop_the_run() {
    let pipeline = load(&demo(3)).unwrap();
    let request = Request { batch: 2, ..Request::new([0, 1, 2], 1) };
    let mut seen = Vec::new();
    let mut previews = Vec::new();
    let generated = pipeline.generate(&request, &mut |it| {
        seen.push((it.finished, it.batch, it.step));
        if it.finished == 2 {
            previews.push(it.preview().unwrap().unwrap());
        }
        ControlFlow::Continue(())
    });
    let images = generated.unwrap().images;
    assert_eq!(seen, [(0, 2, 1), (0, 2, 2), (0, 2, 3), (2, 1, 1), (2, 1, 2), (2, 1, 3)]);
    // The last preview is the image itself.
    assert_eq!(previews[2], images[2..]);
    let distance = |it: &Rgb8| {
        it.as_bytes().iter().zip(images[2].as_bytes()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>()
    };
    assert!(distance(&previews[1][0]) < distance(&previews[0][0]));

    for stop in [1, 3, 5, 6] {
        let mut step = 0;
        let outcome = pipeline.generate(&request, &mut |_| {
            step += 1;
            if step == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(outcome, Err(Error::Cancelled)), "{stop}");
        assert_eq!(step, stop);
    }
}

#[test]
fn a_plan_file_serves_the_settings_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    // The states change at step 3.
    let alike = |it: usize| if (it / 5 < 3) == (it % 5 < 3) { 1.0 } else { 0.0 };
    let similarity = Similarity::from_matrix((0..25).map(alike).collect(), 5).unwrap();
    let best = optimal_plan(&similarity, 2).unwrap();
    let made_for = load(&demo(5)).unwrap().made_for().clone();
    let mut measured = SimilarityFile { made_for, seed: 0, images: 1, similarity, inner_products: None };
    let write = |measured: &SimilarityFile| {
        let file = PlanFile::new(measured, Objective::Budget { num_recompute: 2 }, best.clone());
        std::fs::write(&path, file.to_json().unwrap()).unwrap();
    };
    write(&measured);
    let config = PipelineConfig { sharing: Sharing::File(path.clone()), ..demo(5) };
    let shared = generate(&config, &Request::new([0], 1));
    assert_eq!(shared.report.calls.encoder, 2);
    // The record has the plan itself.
    let Sharing::Plan(plan) = &shared.record.pipeline.sharing else { panic!("{:?}", shared.record) };
    assert_eq!(plan.recompute_steps(), [0, 3]);
    assert_eq!(generate(&shared.record.pipeline, &shared.record.request).images, shared.images);

    let stronger = Some(Guidance::new(7.0, (0.0, 1.0)).unwrap());
    for (other, expected) in [
        (PipelineConfig { guidance: stronger, ..config.clone() }, "scale 4.0, wanted 7.0"),
        (
            PipelineConfig { grid: Some(TimeGrid::new(6, Some(0.04), 1.0).unwrap()), ..config.clone() },
            "num_steps 5, wanted 6",
        ),
        (
            PipelineConfig { grid: Some(TimeGrid::new(5, Some(0.04), 2.0).unwrap()), ..config.clone() },
            "timeshift 1.0, wanted 2.0",
        ),
        (PipelineConfig { solver: "adams2".parse().unwrap(), ..config.clone() }, "adams2"),
    ] {
        let message = chain(&load(&other).unwrap_err());
        assert!(message.contains(expected) && message.contains("plan.json"), "{message}");
    }
    measured.made_for = measured.made_for.with_model("ddt-xl2-22en6de sha256:00");
    write(&measured);
    assert!(chain(&load(&config).unwrap_err()).contains("sha256:00"));
}
