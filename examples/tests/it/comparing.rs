//! The programs `measure_demo` and `reproduce`, on a few small photos.

use std::{fs, path::Path};

use clap::Parser;
use ddt_examples::{generate::Interrupted, measure_demo, progress::Cancel, reproduce};

use crate::no_hub;

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

fn study(folder: &Path) -> reproduce::Args {
    let (photos, out) = (folder.join("photos"), folder.join("study"));
    let words = ["reproduce", "decoder", "--seeds", "1", "--width", "64", "--images", "128", "--steps", "1"];
    let mut args = reproduce::Args::try_parse_from(words).unwrap();
    (args.photos, args.out, args.samples) = (photos, out, 20);
    args
}

#[test]
fn networks_are_trained_and_compared_and_what_is_missing_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    photos(&folder.path().join("photos"));
    let args = study(folder.path());
    let run = |args: &reproduce::Args| reproduce::run(args, &Cancel::default());
    let table = run(&args).unwrap();
    for name in ["| ddt-6en2de |", "| ddt-6en2de-conv3x3 |", "| ddt-6en2de-mlp |"] {
        assert!(table.contains(name), "{table}");
    }
    assert_eq!(fs::read_to_string(args.out.join("decoder.md")).unwrap().lines().count(), 7);
    assert!(fs::read_to_string(args.out.join("decoder.svg")).unwrap().contains("ddt-6en2de-mlp"));

    // The last result was not written whole: its run is complete, and it alone is measured again.
    let path = args.out.join("results.jsonl");
    let before = lines(&path);
    assert_eq!(before.len(), 1 + 3);
    fs::write(&path, before[..3].join("\n") + "\n[\"ddt-6en2de-ml").unwrap();
    // So is what was seen of the training photos, where it is damaged.
    let kept = fs::read_dir(&args.out).unwrap().map(|it| it.unwrap().path());
    let kept: Vec<_> = kept.filter(|it| it.extension().is_some_and(|it| it == "npz")).collect();
    let whole = fs::read(&kept[0]).unwrap();
    fs::write(&kept[0], &whole[..whole.len() / 2]).unwrap();
    run(&args).unwrap();
    assert_eq!((kept.len(), fs::read(&kept[0]).unwrap() == whole), (1, true));
    let after = lines(&path);
    assert_eq!(after[..3], before[..3]);
    let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()[1]["test_loss"].clone();
    assert_eq!(loss(&after[3]), loss(&before[3]));

    let other = reproduce::Args { guidance: 2.0, ..args.clone() };
    assert!(run(&other).unwrap_err().to_string().contains("--out"));
    let uneven = reproduce::Args { width: 96, ..args.clone() };
    assert!(run(&uneven).unwrap_err().to_string().contains("multiple of 64"));
    let absent = reproduce::Args { classifier: Some(folder.path().join("absent")), ..args.clone() };
    assert!(format!("{:#}", run(&absent).unwrap_err()).contains("--classifier"));
    let cancel = Cancel::default();
    cancel.request();
    let more = reproduce::Args { seeds: 2, ..args };
    assert!(reproduce::run(&more, &cancel).unwrap_err().is::<Interrupted>());
}

#[test]
fn the_demo_is_measured_group_by_group() {
    let folder = tempfile::tempdir().unwrap();
    photos(&folder.path().join("photos"));
    let words = ["measure_demo", "--only", "floor", "--steps", "2"];
    let mut args = measure_demo::Args::try_parse_from(words).unwrap();
    (args.photos, args.out) = (folder.path().join("photos"), folder.path().join("measured"));
    args.images = 20;
    let run = |args: &measure_demo::Args| {
        measure_demo::run(args, &no_hub(folder.path()), &Cancel::default()).map_err(|it| format!("{it:#}"))
    };
    let table = run(&args).unwrap();
    assert!(table.contains("| test photos through the autoencoder |"), "{table}");
    assert!(!table.contains("Sharing") && !args.out.join("sharing.svg").exists(), "{table}");
    let path = args.out.join("results.jsonl");
    let before = lines(&path);
    assert_eq!(before.len(), 1 + 4);

    // What is measured already needs no photos.
    fs::remove_dir_all(&args.photos).unwrap();
    assert_eq!(run(&args).unwrap(), table);
    assert_eq!(lines(&path), before);
    args.only = vec![measure_demo::settings::Group::Sharing];
    assert!(run(&args).unwrap_err().contains("--photos"));
    args.images = 30;
    assert!(run(&args).unwrap_err().contains("--out"));
}
