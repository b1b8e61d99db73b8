//! Every study on a few small photos: its files, what it resumes and what it refuses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, ops::ControlFlow, path::Path};

use clap::{Args, Command, FromArgMatches};
use ddt::{Opened, PipelineConfig, flow::NoiseSource, hub::Hub};
use ddt_study::{Analyses, ClassifierTraining, Comparison, DemoStudy, Group, News, Subject, Table};

/// Settings as the words of a command line say them.
fn parse<T: Args + FromArgMatches>(line: &str) -> T {
    let command = T::augment_args(Command::new("program").no_binary_name(true));
    T::from_arg_matches(&command.get_matches_from(line.split_whitespace())).unwrap()
}

/// Two photos of each of ten classes, to train on and to test on.
fn photos(root: &Path) {
    for (split, shift) in [("train", 0), ("test", 31)] {
        for class in 0..10u8 {
            let folder = root.join(split).join(format!("class{class}"));
            fs::create_dir_all(&folder).unwrap();
            for i in 0..2u8 {
                let pixel = |x: u32, y: u32| {
                    let wave =
                        (x as u8).wrapping_mul(class + 1).wrapping_add((y as u8).wrapping_mul(7 * i + 3));
                    image::Rgb([wave, wave.wrapping_add(shift), 20 * class])
                };
                image::RgbImage::from_fn(32, 32, pixel).save(folder.join(format!("{i}.png"))).unwrap();
            }
        }
    }
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn on(_: News<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn is_cancelled(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ddt::Error::Cancelled))
        || matches!(error.downcast_ref(), Some(ddt_train::TrainError::Stopped))
}

#[test]
fn networks_are_trained_and_compared_and_missing_results_are_made_again() {
    let folder = tempfile::tempdir().unwrap();
    photos(&folder.path().join("photos"));
    let mut study: Comparison = parse("--seeds 1 --width 64 --images 128 --steps 1");
    (study.photos, study.out, study.samples) =
        (folder.path().join("photos"), folder.path().join("study"), 20);
    let run = |study: &Comparison| study.run(Table::Decoder, &mut on);
    let table = run(&study).unwrap();
    for name in ["| ddt-6en2de |", "| ddt-6en2de-conv3x3 |", "| ddt-6en2de-mlp |"] {
        assert!(table.contains(name), "{table}");
    }
    assert_eq!(lines(&study.out.join("decoder.md")).len(), 7);
    assert!(fs::read_to_string(study.out.join("decoder.svg")).unwrap().contains("ddt-6en2de-mlp"));
    assert!(study.out.join("ddt-6en2de-seed0.toml").exists());

    // The last result was not written whole: its run is complete, and only it is measured again.
    let path = study.out.join("results.jsonl");
    let before = lines(&path);
    assert_eq!(before.len(), 1 + 3);
    fs::write(&path, before[..3].join("\n") + "\n[\"ddt-6en2de-ml").unwrap();
    // The statistics of the training photos are damaged, and made again.
    let cached = fs::read_dir(&study.out).unwrap().map(|it| it.unwrap().path());
    let cached: Vec<_> = cached.filter(|it| it.extension().is_some_and(|it| it == "npz")).collect();
    let whole = fs::read(&cached[0]).unwrap();
    fs::write(&cached[0], &whole[..whole.len() / 2]).unwrap();
    run(&study).unwrap();
    assert_eq!((cached.len(), fs::read(&cached[0]).unwrap() == whole), (1, true));
    let after = lines(&path);
    assert_eq!(after[..3], before[..3]);
    let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()[1]["test_loss"].clone();
    assert_eq!(loss(&after[3]), loss(&before[3]));

    let other = Comparison { guidance: 2.0, ..study.clone() };
    assert!(run(&other).unwrap_err().to_string().contains("--out"));
    let absent = Comparison { classifier: Some(folder.path().join("absent")), ..study.clone() };
    assert!(format!("{:#}", run(&absent).unwrap_err()).contains("--classifier"));
    // Stopped after some steps of training, and while images are generated.
    let more = Comparison { seeds: 2, ..study };
    let mut left = 2;
    let stopped = more.run(Table::Decoder, &mut |news| {
        left -= i32::from(matches!(news, News::Training(..)));
        if left < 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(is_cancelled(&stopped.unwrap_err()));
    let stopped = more.run(Table::Decoder, &mut |news| match news {
        News::Progress { work: "generating images", .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(is_cancelled(&stopped.unwrap_err()));
    assert_eq!(lines(&path).len(), 1 + 3);
}

#[test]
fn the_demo_is_measured_group_by_group() {
    let folder = tempfile::tempdir().unwrap();
    photos(&folder.path().join("photos"));
    let mut study: DemoStudy = parse("--only floor --steps 2");
    (study.photos, study.out) = (folder.path().join("photos"), folder.path().join("measured"));
    study.images = 20;
    let run = |study: &DemoStudy| study.run(&mut on).map_err(|it| format!("{it:#}"));
    let table = run(&study).unwrap();
    assert!(table.contains("| test photos through the autoencoder |"), "{table}");
    assert!(!table.contains("Sharing") && !study.out.join("sharing.svg").exists(), "{table}");
    let path = study.out.join("results.jsonl");
    let before = lines(&path);
    assert_eq!(before.len(), 1 + 4);

    // Measured settings need no photos.
    fs::remove_dir_all(&study.photos).unwrap();
    assert_eq!(run(&study).unwrap(), table);
    assert_eq!(lines(&path), before);
    study.only = vec![Group::Sharing];
    assert!(run(&study).unwrap_err().contains("--photos"));
    study.images = 30;
    assert!(run(&study).unwrap_err().contains("--out"));
    study.weights = "absent".into();
    assert!(run(&study).unwrap_err().contains("--weights"));
}

#[test]
fn sharing_is_measured_with_both_kinds_of_plans() {
    let folder = tempfile::tempdir().unwrap();
    photos(&folder.path().join("photos"));
    let mut study: DemoStudy = parse("--only sharing --steps 3");
    (study.photos, study.out, study.images) = (folder.path().join("photos"), folder.path().join("out"), 20);
    let table = study.run(&mut on).unwrap();
    assert!(
        table.contains("| ratio | encoder runs | order 0, uniform | order 0, planned | order 1, uniform |"),
        "{table}"
    );
    assert!(fs::read_to_string(study.out.join("sharing.svg")).unwrap().contains("order 2, planned"));
}

#[test]
fn analyses_draw_spectra_and_errors() {
    let folder = tempfile::tempdir().unwrap();
    let mut study: Analyses = parse("--images 4 --step-counts 2,4 --solvers euler,adams --timeshifts 1");
    study.out = folder.path().join("analysis");
    let subject = || {
        let mut config = PipelineConfig::new("demo");
        config.grid = Some(ddt::flow::TimeGrid::new(2, None, 1.0).unwrap());
        let opened = Opened::new(&config, &Hub::from_env()).unwrap();
        Subject { opened, seed: 0, rng: NoiseSource::Counter, batch: 4 }
    };
    let run = |study: &Analyses| study.run(subject(), &mut on);
    let table = run(&study).unwrap();
    assert!(table.contains("euler") && table.contains("adams2"), "{table}");
    let report = fs::read_to_string(study.out.join("analysis.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["solvers"].as_array().unwrap().len(), 4);
    // More steps are nearer to the reference.
    let error = |i: usize| report["solvers"][i]["error"].as_f64().unwrap();
    assert!(error(1) < error(0) && error(3) < error(2), "{report}");
    for name in ["spectrum.svg", "fmax.svg", "solvers.svg", "timeshift.svg"] {
        assert!(fs::read_to_string(study.out.join(name)).unwrap().starts_with("<svg"), "{name}");
    }
    study.timeshifts = vec![-1.0];
    assert!(format!("{:#}", run(&study).unwrap_err()).contains("--timeshifts"));
    study.out = folder.path().join("analysis/analysis.json");
    assert!(format!("{:#}", run(&study).unwrap_err()).contains("--out"));
    study.out = folder.path().join("analysis");
    study.timeshifts = vec![1.0];
    let stopped = study.run(subject(), &mut |_| ControlFlow::Break(()));
    assert!(is_cancelled(&stopped.unwrap_err()));
}

#[test]
fn the_classifier_is_trained_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    photos(&folder.path().join("photos"));
    let mut study: ClassifierTraining = parse("--epochs 13");
    study.photos = folder.path().join("photos");
    (study.run, study.out) = (folder.path().join("whole"), folder.path().join("whole.safetensors"));
    // 13 epochs of 20 photos are 3 steps of 128.
    let text = study.run(&mut on).unwrap();
    assert!(text.contains("of 20 test photos") && text.contains("whole.safetensors"), "{text}");
    let mut other = study.clone();
    (other.run, other.out) = (folder.path().join("stopped"), folder.path().join("stopped.safetensors"));
    let stopped = other.run(&mut |news| match news {
        News::Progress { work: "training on images", done: 256.., .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(is_cancelled(&stopped.unwrap_err()) && !other.out.exists());
    other.run(&mut on).unwrap();
    assert!(fs::read(&other.out).unwrap() == fs::read(&study.out).unwrap());
    let (_, sha256) = ddt_study::Classifier::load(Some(&study.out)).unwrap();
    assert_eq!(sha256, ddt::sha256_of(&study.out).unwrap());
}
