//! `ddt train`, on a few small photos.

use std::{fs, path::Path};

use ddt::picture::{Rgb8, encode_png};
use ddt_train::{EventsFile, Settings, read_log};

use crate::{command, ddt, refuse, succeed};

/// Eight photos of 40 x 24 pixels in each of two classes, and a file that is no photo.
fn photos(root: &Path) {
    for (class, red) in [("cat", 40), ("dog", 200)] {
        fs::create_dir_all(root.join(class)).unwrap();
        for i in 0..8 {
            let pixels = (0..40 * 24).flat_map(|at| [red, (at % 40 * 2) as u8, (at / 40 * 5) as u8 + i]);
            let photo = Rgb8::new(40, 24, pixels.collect()).unwrap();
            let png = encode_png(&photo, &[]).unwrap();
            fs::write(root.join(class).join(format!("{i}.png")), png).unwrap();
        }
    }
    fs::write(root.join("cat/notes.txt"), "").unwrap();
}

/// Settings in `folder`, which has the photos; paths in them are relative to it.
fn settings(folder: &Path) {
    photos(&folder.join("photos"));
    let text = r#"
        run = "run"
        images = { train = "photos", test = "photos", size = 16, flips = true }
        autoencoder = { kind = "pixels" }
        network = { patch_size = 4, hidden_size = 32, num_heads = 2, num_encoder_blocks = 1, num_decoder_blocks = 1 }
        [train]
        batch_size = 4
        total_images = 24
        ema_decays = [0.5, 0.9]
        [watch]
        log_every = 1
        test_every = 3
        samples_every = 5
        tensorboard = true
        "#;
    fs::write(folder.join("settings.toml"), text).unwrap();
}

#[test]
fn photos_become_weights_that_generate() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    settings(folder);
    let outcome = ddt(folder, "train settings.toml");
    assert_eq!(
        (outcome.status, outcome.stdout.trim()),
        (0, "wrote run/weights.safetensors and run/loss.svg")
    );
    let found = "photos: 16 images in 2 classes (16 PNG); left out 1 file (1 .txt)";
    for part in [found, "step      6  images        24  loss ", "average of decay 0.5: loss "] {
        assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
    }
    let log = read_log(&folder.join("run")).unwrap();
    assert_eq!(log.iter().filter(|it| it.get("loss").is_some()).count(), 6);
    assert_eq!(log.iter().filter(|it| it.get("test_loss").is_some()).count(), 2);
    for name in ["loss.svg", "samples/step-0000000005.png", EventsFile::NAME] {
        assert!(folder.join("run").join(name).metadata().unwrap().len() > 100, "{name}");
    }
    let (page, _) = ddt::picture::read_png(&folder.join("run/samples/step-0000000005.png")).unwrap();
    assert!(page.width() > 8 * 16 && page.height() > 2 * 16);
    let small = "--class dog --images 1 --steps 2 --out dog.png";
    succeed(folder, &format!("sample --weights run/weights.safetensors {small}"));

    // A longer run goes on, and its weights may go elsewhere.
    let outcome = ddt(folder, "train settings.toml --images 3_2 --out longer.safetensors --threads 1");
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert!(outcome.stderr.contains("resuming from step 6, 24 images"), "{outcome:?}");
    assert!(folder.join("longer.safetensors").exists());
}

#[test]
fn several_processes_without_a_transport_learn_the_way() {
    let folder = tempfile::tempdir().unwrap();
    settings(folder.path());
    let mut command = command(folder.path(), "train settings.toml");
    let output = command.env("RANK", "1").env("WORLD_SIZE", "4").output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    for part in ["torchrun started 4 processes, of which this is rank 1", "mpirun -n N", "--features mpi"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!folder.path().join("run").exists());
}

#[test]
fn no_report_fails_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    settings(folder);
    // Folders are in the way of the plot and of the samples; other messages than errors are not wanted.
    for name in ["loss.svg", "samples/step-0000000005.png", EventsFile::NAME] {
        fs::create_dir_all(folder.join("run").join(name)).unwrap();
    }
    let outcome = ddt(folder, "train settings.toml");
    assert_eq!((outcome.status, outcome.stdout.trim()), (0, "wrote run/weights.safetensors"), "{outcome:?}");
    for part in ["the plot of the losses is missing", "cannot show samples", "a report failed"] {
        assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
    }
    // Shorter than a line of the log: there is nothing to plot.
    let text = fs::read_to_string(folder.join("settings.toml")).unwrap();
    let text = text.replace("log_every = 1", "log_every = 1000").replace("test_every = 3", "test_every = 0");
    fs::write(folder.join("short.toml"), text).unwrap();
    let outcome = ddt(folder, "--quiet train short.toml --run short");
    assert_eq!((outcome.stdout.trim(), outcome.stderr.as_str()), ("wrote short/weights.safetensors", ""));
    assert!(!folder.join("short/loss.svg").exists());
}

#[test]
fn weights_are_fine_tuned_on_other_classes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    settings(folder);
    succeed(folder, "train settings.toml");
    fs::rename(folder.join("photos/dog"), folder.join("photos/emu")).unwrap();
    fs::create_dir(folder.join("photos/ant")).unwrap();
    fs::copy(folder.join("photos/cat/0.png"), folder.join("photos/ant/0.png")).unwrap();
    let start =
        r#"start = { weights = "run/weights.safetensors", reinit = ["y_embedder"] }"#.to_owned() + "\n";
    let text = fs::read_to_string(folder.join("settings.toml")).unwrap();
    fs::write(folder.join("tune.toml"), text.replace("run = \"run\"", &format!("{start}run = \"tuned\"")))
        .unwrap();
    let outcome = ddt(folder, "train tune.toml");
    assert!(outcome.stderr.contains("starting from run/weights.safetensors"), "{outcome:?}");
    let shown = succeed(folder, "inspect tuned/weights.safetensors");
    assert!(shown.contains("ant, cat, emu"), "{shown}");
}

#[cfg(unix)]
#[test]
fn a_polite_kill_saves_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    settings(folder);
    let line = "train settings.toml --images 400000";
    let mut child = crate::command(folder, line).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let log = folder.join("run/log.jsonl");
    while fs::metadata(&log).map_or(0, |it| it.len()) < 500 {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let killed = std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    let (_, saved) = stderr.split_once("saved run/checkpoints/step-").unwrap();
    let steps: u64 = saved.split_whitespace().next().unwrap().parse().unwrap();
    assert!(!folder.join("run/weights.safetensors").exists());

    let outcome = ddt(folder, &format!("train settings.toml --images {}", 4 * (steps + 1)));
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert!(outcome.stderr.contains(&format!("resuming from step {steps}, ")), "{outcome:?}");
    let log = read_log(&folder.join("run")).unwrap();
    let numbers: Vec<u64> =
        log.iter().filter(|it| it.get("loss").is_some()).map(|it| it["step"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=steps + 1).collect::<Vec<u64>>());
}

#[test]
fn wrong_settings_and_files_are_refused_before_work() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    settings(folder);
    refuse(folder, "train absent.toml", 1, &["absent.toml", "No such file"]);
    refuse(folder, "train", 2, &["<SETTINGS>"]);
    refuse(folder, "train settings.toml --images many", 2, &["500_000"]);
    refuse(folder, "train settings.toml --images 0", 1, &["--images", "total_images"]);
    for (out, expected) in [
        ("missing/w.safetensors", "create the folder missing first"),
        ("w.bin", "ends in .safetensors"),
        ("/dev/null", ".safetensors"),
        ("photos/", "add a file name"),
    ] {
        refuse(folder, &format!("train settings.toml --out {out}"), 1, &["--out", expected]);
    }
    assert!(!folder.join("run").exists());
    let text = fs::read_to_string(folder.join("settings.toml")).unwrap();
    let refused = |from: &str, to: &str, expected: &[&str]| {
        fs::write(folder.join("wrong.toml"), text.replace(from, to)).unwrap();
        refuse(folder, "train wrong.toml", 1, expected);
    };
    refused("\"pixels\"", "\"sd-vae\", weights = \"absent\"", &["autoencoder.weights", "absent"]);
    refused("train = \"photos\"", "train = \"nowhere\"", &["nowhere"]);
    refused("[train]", "[training]", &["wrong.toml", "training"]);
    let alignment = "alignment = { layer = 1, weights = \"absent\", model = \"vit-x\" }\nrun = \"run\"";
    refused("run = \"run\"", alignment, &["alignment.model", "vit-x"]);
    refused("run = \"run\"", &alignment.replace("vit-x", "vit-b"), &["alignment.weights", "absent"]);
    let text =
        text.replace("size = 16", "size = 24").replace("run = \"run\"", &alignment.replace("vit-x", "vit-b"));
    fs::write(folder.join("wrong.toml"), text).unwrap();
    refuse(folder, "train wrong.toml", 1, &["images.size", "24 px become 21 px"]);
    fs::copy(folder.join("photos/cat/0.png"), folder.join("photos/loose.png")).unwrap();
    refuse(folder, "train settings.toml", 1, &["photos", "class folders"]);
}

#[test]
fn the_settings_that_come_with_the_project_make_networks() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|it| it.unwrap().path()).collect();
    assert!(files.len() >= 6);
    for file in files {
        let settings = Settings::read(&file).unwrap();
        let aligned = settings.alignment.as_ref().map_or(0, |it| it.layer);
        let sizes = settings.network.unwrap().config(4, 1000).unwrap().sizes;
        assert!(aligned <= sizes.num_encoder_blocks + sizes.num_decoder_blocks, "{}", file.display());
        if let Some(list) = settings.images.class_list {
            assert!(folder.join("..").join(&list).exists(), "{}", list.display());
        }
    }
}
