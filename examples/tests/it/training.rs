//! The program `train`, through the function behind `main`, on a few small photos.

use std::{fs, path::Path};

use ddt_examples::{
    generate::Interrupted,
    progress::Cancel,
    train::{run::run, settings::Settings, tensorboard::EventsFile, watch::records},
};

/// Eight photos of 40 x 24 pixels in each of two classes, half of them JPEG.
fn photos(root: &Path) {
    for (class, base) in [("cat", 40u8), ("dog", 200)] {
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

fn settings(folder: &Path, more: &str) -> Settings {
    let path = folder.join("settings.toml");
    let photos = folder.join("photos");
    let text = format!(
        r#"
        run = {run:?}
        images = {{ train = {photos:?}, test = {photos:?}, size = 16, flips = true }}
        autoencoder = {{ kind = "pixels" }}
        [network]
        patch_size = 4
        hidden_size = 32
        num_heads = 2
        num_encoder_blocks = 1
        num_decoder_blocks = 1
        [train]
        batch_size = 4
        total_images = 24
        ema_decays = [0.5, 0.9]
        [watch]
        log_every = 1
        test_every = 3
        samples_every = 5
        tensorboard = true
        {more}
        "#,
        run = folder.join("run"),
    );
    fs::write(&path, text).unwrap();
    Settings::read(&path).unwrap()
}

fn train(settings: &Settings, folder: &Path) -> Result<String, String> {
    let out = folder.join("weights.safetensors");
    run(settings, &out, &Cancel::default()).map_err(|error| format!("{error:#}"))
}

#[test]
fn photos_become_weights_that_draw() {
    let folder = tempfile::tempdir().unwrap();
    photos(&folder.path().join("photos"));
    let first = settings(folder.path(), "");
    let summary = train(&first, folder.path()).unwrap();
    assert!(summary.contains("weights.safetensors"), "{summary}");
    let log = records(&first.run).unwrap();
    assert_eq!(log.iter().filter(|it| it.get("loss").is_some()).count(), 6);
    assert_eq!(log.iter().filter(|it| it.get("test_loss").is_some()).count(), 2);
    for name in ["loss.svg", "samples/step-0000000005.png", EventsFile::NAME] {
        assert!(first.run.join(name).metadata().unwrap().len() > 100, "{name}");
    }
    let drawn = crate::run(
        folder.path(),
        &[
            "--weights",
            folder.path().join("weights.safetensors").to_str().unwrap(),
            "--class",
            "dog",
            "--images",
            "1",
            "--steps",
            "2",
        ],
    );
    drawn.unwrap();
    // A longer run goes on; its weights can be started from elsewhere.
    let mut longer = first.clone();
    longer.train.total_images = 32;
    train(&longer, folder.path()).unwrap();
    assert_eq!(records(&first.run).unwrap().iter().filter(|it| it.get("loss").is_some()).count(), 8);
    let mut second = longer.clone();
    second.run = folder.path().join("second");
    second.images.cache = Some(first.run.join("latents"));
    second.start = Some(folder.path().join("weights.safetensors"));
    train(&second, folder.path()).unwrap();
}

#[test]
fn a_request_to_stop_is_honoured_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    photos(&folder.path().join("photos"));
    let settings = settings(folder.path(), "");
    let cancel = Cancel::default();
    cancel.request();
    let out = folder.path().join("weights.safetensors");
    assert!(run(&settings, &out, &cancel).unwrap_err().is::<Interrupted>());
    assert!(!out.exists());
    train(&settings, folder.path()).unwrap();
}

#[test]
fn bad_photos_are_named_and_skipped_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("photos");
    photos(&root);
    fs::write(root.join("dog/99.jpg"), b"no photo").unwrap();
    fs::write(root.join("cat/empty.png"), b"").unwrap();
    let mut settings = settings(folder.path(), "");
    let message = train(&settings, folder.path()).unwrap_err();
    assert!(message.contains("cat/empty.png"), "{message}");
    settings.images.skip_corrupt = true;
    let message = train(&settings, folder.path()).unwrap_err();
    assert!(message.contains("skip_corrupt"), "{message}");
    settings.run = folder.path().join("other");
    train(&settings, folder.path()).unwrap();
}

#[test]
fn what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("photos");
    let base = settings(folder.path(), "");
    assert!(train(&base, folder.path()).unwrap_err().contains("photos"));
    fs::create_dir_all(&root).unwrap();
    assert!(train(&base, folder.path()).unwrap_err().contains("class"), "a folder without classes");
    photos(&root);
    train(&base, folder.path()).unwrap();
    let refused = |change: &dyn Fn(&mut Settings), part: &str| {
        let mut other = base.clone();
        change(&mut other);
        let message = train(&other, folder.path()).unwrap_err();
        assert!(message.contains(part), "{message}");
    };
    refused(&|it| it.train.seed = 9, "settings");
    refused(&|it| it.flow.timeshift = 2.0, "network or loss");
    refused(&|it| it.images.size = 18, "patch");
    refused(&|it| it.images.size = 32, "size 32");
    refused(&|it| (it.start, it.run) = (Some(root.clone()), folder.path().join("new")), "start");
    let vae = ddt_examples::train::settings::AutoencoderSettings::SdVae { weights: root.join("absent") };
    refused(&|it| it.autoencoder = vae.clone(), "absent");
    let _held = ddt_train::RunFolder::open(&base.run).unwrap();
    refused(&|_| {}, "another process");
}
