//! The program `train`, through the function behind `main`, on a few small photos.

use std::{fs, path::Path};

use ddt_examples::{generate::Interrupted, progress::Cancel, train::run};
use ddt_train::{AutoencoderSettings, EventsFile, Settings, read_log};

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
    let log = read_log(&first.run).unwrap();
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
    // Shorter than the interval of the log: there is nothing to plot, and nothing fails.
    let mut short = first.clone();
    short.run = folder.path().join("short");
    short.watch.log_every = 1000;
    short.watch.test_every = 0;
    assert!(!train(&short, folder.path()).unwrap().contains("loss.svg"));
    assert!(!short.run.join("loss.svg").exists());
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
fn networks_that_cannot_be_loaded_are_named() {
    let folder = tempfile::tempdir().unwrap();
    photos(&folder.path().join("photos"));
    let mut settings = settings(folder.path(), "");
    settings.autoencoder = AutoencoderSettings::SdVae { weights: folder.path().join("absent") };
    assert!(train(&settings, folder.path()).unwrap_err().contains("absent"));
}

#[test]
fn the_files_that_come_with_the_examples_make_networks() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    assert!(files.len() >= 6);
    for file in files {
        let settings = Settings::read(&file).unwrap();
        let aligned = settings.alignment.as_ref().map_or(0, |it| it.layer);
        let sizes = settings.network.unwrap().config(4, 1000).unwrap().sizes;
        assert!(aligned <= sizes.num_encoder_blocks + sizes.num_decoder_blocks, "{}", file.display());
    }
}
