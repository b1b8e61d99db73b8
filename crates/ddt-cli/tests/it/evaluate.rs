//! `ddt evaluate`.

use std::{fs, path::Path};

use ddt::{
    files::npz::{ArrayData, NamedArray, write_npz},
    picture::{Rgb8, encode_png},
};
use ddt_metrics::{Report, Warning};
use sha2::{Digest, Sha256};

use crate::{ddt, names_in, refuse, succeed};

/// Bytes without a pattern.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let block = |i: u32| Sha256::digest([seed.to_le_bytes(), i.to_le_bytes()].concat());
    (0..).flat_map(block).take(len).collect()
}

fn write_images(path: &Path, pixels: &[u8], shape: [usize; 3], labels: Option<&[i64]>) {
    let [num_images, height, width] = shape;
    let shape = [num_images, height, width, 3];
    let mut arrays: Vec<NamedArray<'_>> = vec![("arr_0", &shape, ArrayData::U8(pixels))];
    arrays.extend(labels.map(|it| ("arr_1", &shape[..1], ArrayData::I64(it))));
    write_npz(path, &arrays).unwrap();
}

fn notes(report: &Report) -> String {
    report
        .warnings
        .iter()
        .filter(|it| matches!(it, Warning::Note { .. }))
        .map(|it| format!("{it}\n"))
        .collect()
}

const CLASSIFIER: &str = "--extractor=cifar10-classifier";

#[test]
fn the_classifier_needs_no_weights_and_maps_classes_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let labels: Vec<i64> = (0..40).map(|it| it % 2).collect();
    write_images(&at("noise.npz"), &noise(40 * 3072, 6), [40, 32, 32], Some(&labels));
    let evaluate = |more: &str| {
        let table = succeed(folder.path(), &format!("evaluate noise.npz noise.npz {CLASSIFIER} {more}"));
        (Report::read(&at("noise.npz.evaluation.json")).unwrap(), table)
    };
    // Nothing says which classes 0 and 1 are.
    let (report, table) = evaluate("");
    assert!(report.value("frechet_distance").unwrap() <= 1e-6, "{table}");
    assert!(
        table.contains("noise.npz (40 images)") && table.contains("wrote noise.npz.evaluation.json"),
        "{table}"
    );
    assert_eq!(report.value("class_accuracy"), None);
    assert!(notes(&report).contains("class_accuracy is left out: nothing says which class"), "{table}");
    let evaluator = &report.protocol.evaluation.evaluator;
    assert_eq!((evaluator.name.as_str(), evaluator.feature_size), ("cifar10-classifier", 192));

    // Noise looks like one thing or two: whichever they are, two lists of names divide it.
    let features = names_in(&at("out/features"));
    let mut shares = Vec::new();
    for names in ["Airplane\nautomobile", "bird\ncat", "deer\ndog", "frog\nhorse, pony", "ship\ntruck"] {
        fs::write(at("names.txt"), names).unwrap();
        shares.push(evaluate("--classes names.txt").0.value("class_accuracy").unwrap());
    }
    assert!(shares.iter().sum::<f64>() > 0.0 && shares.iter().sum::<f64>() <= 1.0, "{shares:?}");
    fs::write(at("names.txt"), "cat\nkiwi\n").unwrap();
    let (report, _) = evaluate("--classes names.txt");
    assert!(notes(&report).contains("class \"kiwi\" is none of airplane"), "{}", notes(&report));
    // Names of a description, as ddt dataset writes it.
    let description =
        r#"{"job": {"protocol": {"request": {"classes": [0, 1]}, "class_names": ["cat", "dog"]}}}"#;
    fs::write(at("noise.npz.json"), description).unwrap();
    assert!(evaluate("").0.value("class_accuracy").is_some());
    assert_eq!(names_in(&at("out/features")), features);

    let small = format!("evaluate small.npz small.npz {CLASSIFIER}");
    write_images(&at("small.npz"), &noise(8 * 12, 7), [8, 2, 2], None);
    refuse(folder.path(), &small, 1, &["32 x 32 pixels, got 2 x 2"]);
}

#[test]
fn folders_are_said_with_counts_formats_and_what_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // Class folders whose ranks are not the classifier's labels.
    for (class, name) in ["cat", "dog", "horse"].into_iter().enumerate() {
        fs::create_dir_all(at("photos").join(name)).unwrap();
        for image in 0..4 {
            let pixels = noise(3072, 1 + 4 * class as u32 + image);
            let bytes = encode_png(&Rgb8::new(32, 32, pixels).unwrap(), &[]).unwrap();
            fs::write(at("photos").join(name).join(format!("{image}.png")), bytes).unwrap();
        }
    }
    fs::write(at("photos/cat/notes.txt"), "").unwrap();
    let pixels = noise(20 * 3072, 40);
    let (images, labels) = (ArrayData::U8(&pixels), ArrayData::F32(&[0.5; 20]));
    write_npz(at("samples.npz"), &[("arr_0", &[20, 32, 32, 3], images), ("arr_1", &[20], labels)]).unwrap();
    let outcome = ddt(folder.path(), &format!("evaluate photos/ samples.npz {CLASSIFIER}"));
    assert_eq!(outcome.status, 0, "{outcome:?}");
    for part in [
        "photos/: 12 images in 3 classes (12 PNG); left out 1 file (1 .txt)",
        "samples.npz: 20 images of 32 x 32 pixels, without labels; left out arrays arr_1",
    ] {
        assert!(outcome.stderr.contains(part), "{outcome:?}");
    }
    let report = Report::read(&at("photos.evaluation.json")).unwrap();
    assert!(report.value("class_accuracy").is_some(), "{outcome:?}");
    assert_eq!(report.protocol.evaluation.samples.num_images, 12);
    let notes = notes(&report);
    assert!(
        notes.contains("samples: left out 1 file ") && notes.contains("references: left out arrays"),
        "{notes}"
    );
    // The same numbers from the cache.
    let again = succeed(folder.path(), &format!("evaluate photos samples.npz {CLASSIFIER} --out again.json"));
    assert_eq!(Report::read(&at("again.json")).unwrap(), report);
    assert_eq!(again.lines().next(), outcome.stdout.lines().next());
    let explained = succeed(folder.path(), "evaluate --explain again.json photos.evaluation.json");
    assert!(explained.contains("measured in the same way"), "{explained}");
}

#[test]
fn bad_input_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let refused = |line: &str, expected: &[&str]| {
        refuse(folder.path(), &format!("evaluate {line}"), 1, expected);
        assert!(!names_in(folder.path()).iter().any(|it| it.ends_with(".evaluation.json")));
    };
    write_images(&at("good.npz"), &noise(8 * 12, 4), [8, 2, 2], None);
    refused("absent.npz good.npz", &["SAMPLES", "absent.npz", "npz file or a folder"]);
    fs::create_dir(at("empty")).unwrap();
    refused("good.npz empty", &["REFERENCES", "empty", ".png"]);
    fs::create_dir_all(at("both/class")).unwrap();
    for name in ["both/class/1.png", "both/2.png"] {
        fs::write(at(name), encode_png(&Rgb8::filled(2, 2, [0; 3]).unwrap(), &[]).unwrap()).unwrap();
    }
    refused("both good.npz", &["SAMPLES", "found both"]);
    fs::write(at("text.npz"), "no archive").unwrap();
    refused("text.npz good.npz", &["text.npz"]);
    let whole = fs::read(at("good.npz")).unwrap();
    fs::write(at("cut.npz"), &whole[..whole.len() / 2]).unwrap();
    refused("cut.npz good.npz", &["cut.npz"]);

    let [mu, sigma] = [[0.0; 2].as_slice(), [1.0, 2.0, 3.0, 1.0].as_slice()].map(ArrayData::F64);
    let (nan, unit) = (ArrayData::F64(&[f64::NAN, 0.0, 0.0, 1.0]), ArrayData::F64(&[1.0, 0.0, 0.0, 1.0]));
    let arrays: [(&str, &[NamedArray<'_>], &[&str]); 8] = [
        ("type.npz", &[("arr_0", &[1, 1, 1, 3], ArrayData::F32(&[0.0; 3]))], &["arr_0", "|u1", "<f4"]),
        ("shape.npz", &[("arr_0", &[4, 3], ArrayData::U8(&[0; 12]))], &["arr_0", "shape"]),
        ("none.npz", &[("arr_0", &[0, 2, 2, 3], ArrayData::U8(&[]))], &["at least one image"]),
        ("else.npz", &[("x", &[1], ArrayData::U8(&[0]))], &["arr_0", "mu and sigma", "got x"]),
        ("skew.npz", &[("mu", &[2], mu), ("sigma", &[2, 2], sigma)], &["mu and sigma", "symmetric"]),
        ("size.npz", &[("mu", &[2], mu), ("sigma", &[4, 1], sigma)], &["sigma", "shape (2, 2)"]),
        ("nan.npz", &[("mu", &[2], mu), ("sigma", &[2, 2], nan)], &["finite", "NaN"]),
        ("statistics.npz", &[("mu", &[2], mu), ("sigma", &[2, 2], unit)], &["SAMPLES", "only statistics"]),
    ];
    for (name, arrays, expected) in arrays {
        write_npz(at(name), arrays).unwrap();
        refused(&format!("{name} good.npz"), expected);
    }

    fs::write(at("names"), "cat\n").unwrap();
    for (more, expected) in [
        ("", &["--weights", "pytorch-fid"][..]),
        ("--extractor=dinov2", &["--weights", "dinov2_vitl14"]),
        ("--weights=text.npz", &["--weights", "text.npz"]),
        ("--extractor=dinov2 --weights=text.npz", &["--weights", "text.npz"]),
        (
            "--extractor=cifar10-classifier --weights=text.npz",
            &["--extractor cifar10-classifier", "text.npz"],
        ),
        ("--protocol=fid", &["--protocol", "adm-imagenet-256"]),
        ("--classes=absent", &["--classes", "absent"]),
        ("--out=missing/report.json", &["--out", "create the folder"]),
        ("--out=report.txt", &["--out", "ends in .json"]),
        ("--out=newfolder/", &["--out", "add a file name"]),
        ("--out=mine.json", &["--out", "mine.json is there already"]),
        ("--cache=names", &["--cache", "names"]),
    ] {
        fs::write(at("mine.json"), "{}").unwrap();
        refused(&format!("good.npz good.npz {more}"), expected);
        assert_eq!(fs::read(at("mine.json")).unwrap(), b"{}");
    }
    refused("--explain text.npz good.npz", &["expected a report", "text.npz"]);
    for (line, expected) in [
        ("", "<SAMPLES>"),
        ("a.npz", "<REFERENCES>"),
        ("--explain a.json", "2 values"),
        ("a.npz b.npz --explain a.json b.json", "cannot be used with"),
        ("a.npz b.npz --extractor vgg", "inception, dinov2, cifar10-classifier"),
        ("a.npz b.npz --neighbourhood 0", "1..=1024"),
        ("a.npz b.npz --split-size 0", "not in"),
        ("a.npz b.npz --device gpu", "expected cpu"),
    ] {
        refuse(folder.path(), &format!("evaluate {line}"), 2, &[expected]);
    }
}
