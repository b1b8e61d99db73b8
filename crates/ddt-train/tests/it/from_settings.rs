//! Whole runs from settings and photos on disk.

use std::{fs, ops::ControlFlow, path::Path, sync::Arc};

use candle_core::Tensor;
use ddt_model::DdtFile;
use ddt_train::{
    AlignmentSettings, Alone, Event, Exported, FeatureExtractor, FeatureShape, FileSystem, Frozen,
    LatentEncoder, Precision, RunFolder, Settings, StartSettings, TrainError, read_log, run,
};

/// Eight photos of 40 x 24 pixels in each class, half of them JPEG.
fn photos(root: &Path, classes: &[&str]) {
    for (class, base) in classes.iter().zip([40u8, 200, 120]) {
        let folder = root.join(class);
        fs::create_dir_all(&folder).unwrap();
        for i in 0..8u8 {
            let photo = image::RgbImage::from_fn(40, 24, |x, y| {
                image::Rgb([base, base.wrapping_add((x * 2) as u8), (y * 5) as u8 + i])
            });
            let name = format!("{i}.{}", if i % 2 == 0 { "png" } else { "jpg" });
            photo.save(folder.join(name)).unwrap();
        }
    }
}

/// A folder with photos of two classes.
pub(crate) fn with_photos() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    photos(&folder.path().join("photos"), &["cat", "dog"]);
    folder
}

pub(crate) fn settings(folder: &Path) -> Settings {
    let text = format!(
        r#"
        run = {run:?}
        images = {{ train = {photos:?}, test = {photos:?}, size = 16, flips = true }}
        autoencoder = {{ kind = "pixels" }}
        train = {{ batch_size = 4, total_images = 24, ema_decays = [0.5, 0.9] }}
        watch = {{ log_every = 1, test_every = 3, samples_every = 5, tensorboard = true }}
        [network]
        patch_size = 4
        hidden_size = 32
        num_heads = 2
        num_encoder_blocks = 1
        num_decoder_blocks = 1
        "#,
        run = folder.join("run"),
        photos = folder.join("photos"),
    );
    Settings::parse(&text).unwrap()
}

pub(crate) fn pixels() -> Frozen<'static> {
    Frozen { encoder: LatentEncoder::pixels(), features: None }
}

/// Trains, and lists the events that are not steps.
fn train_with(
    settings: &Settings,
    frozen: &Frozen<'_>,
    go_on: impl FnMut(&Event<'_>) -> bool,
) -> (Result<Exported, TrainError>, Vec<String>) {
    train_on(&FileSystem::default(), settings, frozen, go_on)
}

pub(crate) fn train_on(
    system: &FileSystem,
    settings: &Settings,
    frozen: &Frozen<'_>,
    mut go_on: impl FnMut(&Event<'_>) -> bool,
) -> (Result<Exported, TrainError>, Vec<String>) {
    let mut events = Vec::new();
    let outcome = run(Arc::new(Alone), system, settings, frozen, &out(settings), &mut |event| {
        if !matches!(event, Event::Step(_)) {
            events.push(format!("{event:?}"));
        }
        if go_on(&event) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    (outcome, events)
}

fn train(settings: &Settings) -> Result<Exported, String> {
    train_with(settings, &pixels(), |_| true).0.map_err(|error| error.to_string())
}

fn out(settings: &Settings) -> std::path::PathBuf {
    settings.run.join("weights.safetensors")
}

fn losses(settings: &Settings, key: &str) -> Vec<f64> {
    read_log(&settings.run).unwrap().iter().filter_map(|it| it.get(key)?.as_f64()).collect()
}

#[test]
fn photos_become_weights() {
    let losses = [Precision::F32, Precision::Bf16].map(|precision| {
        let folder = with_photos();
        let mut settings = settings(folder.path());
        settings.train.precision = precision;
        let (outcome, events) = train_with(&settings, &pixels(), |_| true);
        let exported = outcome.unwrap();
        assert!(exported.test_loss.unwrap().is_finite() && [0.5, 0.9].contains(&exported.decay));
        assert_eq!((losses(&settings, "loss").len(), losses(&settings, "test_loss").len()), (6, 2));
        let count = |start: &str| events.iter().filter(|it| it.starts_with(start)).count();
        let counts = ["Photos", "TestLoss", "Samples", "Saved", "AverageLoss", "ReportFailed"].map(count);
        assert_eq!(counts, [2, 2, 1, 1, 2, 0], "{events:?}");
        let samples = events.iter().find(|it| it.starts_with("Samples")).unwrap();
        assert!(samples.contains("dims 16, 3, 16, 16") && samples.contains("\"dog\""), "{samples}");

        let file = DdtFile::open(out(&settings)).unwrap();
        assert_eq!(file.classes().unwrap(), ["cat", "dog"]);
        assert_eq!(file.latents().unwrap().autoencoder, "pixels");
        // A longer run resumes.
        let mut longer = settings.clone();
        longer.train.total_images = 32;
        train(&longer).unwrap();
        assert_eq!(losses(&longer, "loss").len(), 8);
        losses(&longer, "loss")
    });
    // Rounding changes losses, but only a little.
    let close = losses[0].iter().zip(&losses[1]).all(|(f32, bf16)| (f32 - bf16).abs() < 0.01 * f32);
    assert!(close && losses[0] != losses[1], "{losses:?}");
}

#[test]
fn stopping_anywhere_changes_no_byte() {
    let folder = with_photos();
    let mut whole = settings(folder.path());
    train(&whole).unwrap();
    let expected = fs::read(out(&whole)).unwrap();
    for stop in [0, 1, 2, 3, 7, 11] {
        let mut stopped = whole.clone();
        stopped.run = folder.path().join(format!("stopped-{stop}"));
        let mut left = stop;
        let (outcome, _) = train_with(&stopped, &pixels(), |_| {
            left -= 1;
            left >= 0
        });
        assert!(matches!(outcome, Err(TrainError::Stopped)), "{outcome:?}");
        assert!(!out(&stopped).exists());
        train(&stopped).unwrap();
        assert!(fs::read(out(&stopped)).unwrap() == expected, "stopped after {stop} events");
    }
    // Nothing is left to do, and nothing changes.
    whole.watch.samples_every = 1;
    train(&whole).unwrap();
    assert!(fs::read(out(&whole)).unwrap() == expected);
}

#[test]
fn no_report_fails_a_run() {
    let folder = with_photos();
    let mut settings = settings(folder.path());
    // Shorter than a line of the log.
    settings.watch.log_every = 1000;
    settings.watch.test_every = 0;
    // No guidance is negative, and a folder is in the way of the records.
    settings.watch.guidance = f64::NAN;
    fs::create_dir_all(settings.run.join(ddt_train::EventsFile::NAME)).unwrap();
    let (outcome, events) = train_with(&settings, &pixels(), |_| true);
    outcome.unwrap();
    assert!(read_log(&settings.run).unwrap().is_empty());
    assert_eq!(events.iter().filter(|it| it.starts_with("ReportFailed")).count(), 2, "{events:?}");
}

#[test]
fn bad_photos_are_named_and_skipped_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("photos");
    photos(&root, &["cat", "dog"]);
    fs::write(root.join("dog/99.jpg"), b"no photo").unwrap();
    fs::write(root.join("cat/empty.png"), b"").unwrap();
    fs::write(root.join("cat/notes.txt"), b"").unwrap();
    let mut settings = settings(folder.path());
    let message = train(&settings).unwrap_err();
    assert!(message.contains("cat/empty.png"), "{message}");
    settings.images.skip_corrupt = true;
    let message = train(&settings).unwrap_err();
    assert!(message.contains("skip_corrupt"), "{message}");
    settings.run = folder.path().join("other");
    let (outcome, events) = train_with(&settings, &pixels(), |_| true);
    outcome.unwrap();
    let event = |start: &str| events.iter().find(|it| it.starts_with(start)).unwrap();
    assert!(event("Skipped").contains("count: 2"), "{events:?}");
    assert!(event("Photos").contains(".txt"), "{events:?}");
}

#[test]
fn settings_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("photos");
    let base = settings(folder.path());
    assert!(train(&base).unwrap_err().contains("photos"));
    fs::create_dir_all(&root).unwrap();
    assert!(train(&base).unwrap_err().contains("class"), "a folder without classes");
    photos(&root, &["cat", "dog"]);
    train(&base).unwrap();
    photos(&folder.path().join("others"), &["cat", "cow"]);
    let refused = |change: &dyn Fn(&mut Settings), part: &str| {
        let mut other = base.clone();
        change(&mut other);
        let message = train(&other).unwrap_err();
        assert!(message.contains(part), "{message}");
    };
    refused(&|it| it.train.seed = 9, "settings");
    refused(&|it| it.flow.timeshift = 2.0, "network or loss");
    refused(&|it| it.images.size = 18, "patch");
    refused(&|it| it.images.size = 32, "size 32");
    refused(&|it| it.images.test = Some(folder.path().join("others")), "cat, cow");
    refused(&|it| it.start = Some(StartSettings { weights: root.clone(), reinit: vec![] }), "photos");
    refused(&|it| it.alignment = Some(alignment(false)), "alignment");
    let _held = RunFolder::open(&base.run).unwrap();
    refused(&|_| {}, "another process");
}

fn alignment(cache: bool) -> AlignmentSettings {
    AlignmentSettings { layer: 1, weight: 0.5, model: "vit-b".to_owned(), weights: "unused".into(), cache }
}

/// Means of the quarters of an image, in steps that 16 bits hold exactly.
fn quarters() -> FeatureExtractor<'static> {
    let extract = |pixels: &Tensor| {
        let (b, c, h, w) = pixels.dims4()?;
        let quarters = pixels.reshape((b, c, 2, h / 2, 2, w / 2))?.mean(5)?.mean(3)?; // (B, C, 2, 2)
        ((quarters * 8.0)?.round()? / 8.0)?.reshape((b, c, 4))?.transpose(1, 2)?.contiguous()
    };
    FeatureExtractor {
        identity: "quarters".to_owned(),
        shape: FeatureShape { grid: (2, 2), dim: 3 },
        extract: Box::new(extract),
    }
}

#[test]
fn features_computed_at_every_step_are_those_of_the_cache() {
    let folder = with_photos();
    let run = |cache: bool| {
        let mut settings = settings(folder.path());
        settings.run = folder.path().join(if cache { "cached" } else { "live" });
        settings.train.total_images = 40;
        settings.alignment = Some(alignment(cache));
        let frozen = Frozen { features: Some(quarters()), ..pixels() };
        let (mut stopped, mut steps) = (false, 0);
        while !stopped {
            // The live one starts again in the middle of an epoch.
            let (outcome, _) = train_with(&settings, &frozen, |event| {
                steps += i32::from(matches!(event, Event::Step(_)));
                steps != 3
            });
            stopped = outcome.is_ok();
            steps = 100;
        }
        (losses(&settings, "alignment_loss"), losses(&settings, "loss"))
    };
    let cached = run(true);
    assert_eq!(cached.0.len(), 10);
    assert_eq!(cached, run(false));
}

#[test]
fn fine_tuning_on_other_classes_keeps_all_but_what_is_initialised_anew() {
    let folder = with_photos();
    let first = settings(folder.path());
    train(&first).unwrap();
    photos(&folder.path().join("photos"), &["cat", "dog", "emu"]);
    let start = |reinit: &[&str]| {
        let reinit = reinit.iter().map(|it| (*it).to_owned()).collect();
        StartSettings { weights: out(&first), reinit }
    };
    let mut second = settings(folder.path());
    second.run = folder.path().join("second");
    second.start = Some(start(&[]));
    let message = train(&second).unwrap_err();
    assert!(message.contains("y_embedder") && message.contains("start.reinit"), "{message}");
    second.start = Some(start(&["y_embeder"]));
    let message = train(&second).unwrap_err();
    assert!(message.contains("y_embedder") && message.contains("got y_embeder"), "{message}");
    // The network is the file's, with other classes; steps too small to see leave the start in place.
    second.network = None;
    second.start = Some(start(&["y_embedder"]));
    second.train.lr.peak = 1e-30;
    train(&second).unwrap();

    let (before, after) = (DdtFile::open(out(&first)).unwrap(), DdtFile::open(out(&second)).unwrap());
    assert_eq!(after.classes().unwrap(), ["cat", "dog", "emu"]);
    let (before, after) = (before.weights(None).unwrap(), after.weights(None).unwrap());
    // The same from a file that states nothing of itself.
    let bare = folder.path().join("bare.safetensors");
    ddt_files::write_safetensors(&bare, &before, &Default::default()).unwrap();
    let mut third = second.clone();
    third.run = folder.path().join("third");
    third.start = Some(StartSettings { weights: bare, ..start(&["y_embedder."]) });
    assert!(train(&third).unwrap_err().contains("network"));
    third.network = first.network.clone();
    train(&third).unwrap();
    assert!(fs::read(out(&third)).unwrap() == fs::read(out(&second)).unwrap());

    let values = |it: &Tensor| it.flatten_all().unwrap().to_vec1::<half::f16>().unwrap();
    for (name, weight) in &after {
        if name.starts_with("y_embedder") {
            assert_eq!(weight.dims()[0], 4);
            assert_ne!(values(weight)[..3], values(&before[name])[..3]);
        } else {
            assert_eq!(values(weight), values(&before[name]), "{name}");
        }
    }
}

#[test]
fn fine_tuning_normalises_latents_as_the_weights_are_used_to() {
    let folder = with_photos();
    let normalised =
        || Frozen { encoder: LatentEncoder { normalise: true, ..LatentEncoder::pixels() }, features: None };
    let first = settings(folder.path());
    train_with(&first, &normalised(), |_| true).0.unwrap();
    let latents = |it: &Settings| DdtFile::open(out(it)).unwrap().latents().unwrap().clone();
    assert!(latents(&first).std.iter().all(|it| *it > 0.0 && *it != 1.0), "{:?}", latents(&first));
    photos(&folder.path().join("others"), &["emu", "cow", "ant"]);
    let mut second = first.clone();
    second.run = folder.path().join("second");
    second.images.train = folder.path().join("others");
    second.images.test = None;
    second.start = Some(StartSettings { weights: out(&first), reinit: vec!["y_embedder".to_owned()] });
    train_with(&second, &normalised(), |_| true).0.unwrap();
    assert_eq!(latents(&second), latents(&first));
    second.run = folder.path().join("third");
    second.start = None;
    train_with(&second, &normalised(), |_| true).0.unwrap();
    assert_ne!(latents(&second).mean, latents(&first).mean);
}
