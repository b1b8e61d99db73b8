//! The program `evaluate`, with an extractor that needs no weights, and what it refuses.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Parser;
use ddt_examples::evaluate::cli::Args;
use ddt_examples::evaluate::extractor::{Extracted, Extractor, Rows};
use ddt_examples::evaluate::images::Chunk;
use ddt_examples::evaluate::{Job, run, table};
use ddt_files::npz::{ArrayData, write_npz};
use ddt_metrics::{Report, Warning, explain};

/// Sees the mean of each channel; its spatial features and its class are the first bytes.
struct Means;

impl Extractor for Means {
    fn name(&self) -> &str {
        "means"
    }

    fn weights_sha256(&self) -> &str {
        "none"
    }

    fn extract(&self, images: &Chunk) -> Result<Extracted> {
        let mean = |it: &[u8], channel: usize| {
            it.iter().skip(channel).step_by(3).map(|it| f32::from(*it)).sum::<f32>() / (it.len() / 3) as f32
        };
        let features = images.images().flat_map(|it| [0, 1, 2].map(|channel| mean(it, channel))).collect();
        let spatial = images.images().flat_map(|it| [it[0].into(), it[1].into()]).collect();
        let logit = |first: u8, class: u8| if first % 4 == class { 9.0 } else { 0.0 };
        let logits = images.images().flat_map(|it| [0, 1, 2, 3].map(|class| logit(it[0], class))).collect();
        Ok(Extracted {
            features: Rows { values: features, size: 3 },
            spatial: Some(Rows { values: spatial, size: 2 }),
            logits: Some(Rows { values: logits, size: 4 }),
        })
    }
}

/// Bytes without a pattern.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 11) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn write_images(path: &Path, pixels: &[u8], shape: [usize; 3]) {
    let [num_images, height, width] = shape;
    write_npz(path, &[("arr_0", &[num_images, height, width, 3], ArrayData::U8(pixels))]).unwrap();
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn args(&self, line: &[&str]) -> Args {
        let path = |word: &&str| {
            if word.starts_with("--") { (*word).into() } else { self.at(word).into_os_string() }
        };
        let words = line.iter().map(path);
        let cache = ["--cache".into(), self.at("features").into_os_string()];
        Args::try_parse_from(std::iter::once("evaluate".into()).chain(words).chain(cache)).unwrap()
    }

    fn evaluate(&self, line: &[&str]) -> Report {
        let args = self.args(line);
        let samples = args.samples.as_deref().unwrap();
        let job = Job::prepare(&args, samples, args.references.as_deref().unwrap()).unwrap();
        job.evaluate(&args, &Means).unwrap()
    }

    /// What `run` refuses; nothing is left behind.
    #[track_caller]
    fn refused(&self, line: &[&str], expected: &[&str]) {
        let message = format!("{:#}", run(&self.args(line)).unwrap_err());
        for part in expected {
            assert!(message.contains(part), "{line:?}: expected {part:?} in {message:?}");
        }
        let reports = std::fs::read_dir(self.folder.path()).unwrap();
        let names = reports.map(|it| it.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|it| it.ends_with(".evaluation.json")).count(), 0);
    }
}

#[test]
fn an_archive_a_folder_and_statistics_are_compared() {
    let place = Place::new();
    let pixels = noise(300 * 4 * 5 * 3, 1);
    write_images(&place.at("samples.npz"), &pixels, [300, 4, 5]);
    let job = r#"{"job": {"count": 300, "protocol": {"solver": "euler"}}, "archive": {}}"#;
    std::fs::write(place.at("samples.npz.json"), job).unwrap();
    std::fs::create_dir(place.at("photos")).unwrap();
    for (at, image) in pixels.chunks_exact(60).enumerate() {
        let image = image::RgbImage::from_raw(5, 4, image.to_vec()).unwrap();
        image.save(place.at(&format!("photos/{at}.png"))).unwrap();
    }

    // A sample against itself, as a folder.
    let report = place.evaluate(&["samples.npz", "photos"]);
    assert!(report.value("frechet_distance").unwrap() <= 1e-6);
    assert!(report.value("spatial_frechet_distance").unwrap() <= 1e-6);
    assert_eq!((report.value("precision"), report.value("recall")), (Some(1.0), Some(1.0)));
    assert!(report.value("class_score").unwrap() > 1.5);
    assert_eq!(report.protocol.sample.as_ref().unwrap()["protocol"]["solver"], "euler");
    assert_eq!(report.protocol.evaluation.references.image_size, Some((4, 5)));
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    let shown = table::table(&report);
    assert!(shown.contains("frechet_distance") && shown.contains("samples.npz (300 images)"), "{shown}");

    // Features come from the cache, and other samples have other numbers.
    let before = std::fs::read_dir(place.at("features")).unwrap().count();
    assert_eq!(place.evaluate(&["samples.npz", "photos"]), report);
    assert_eq!(std::fs::read_dir(place.at("features")).unwrap().count(), before);
    write_images(&place.at("other.npz"), &noise(40 * 60, 2), [40, 4, 5]);
    let other = place.evaluate(&["other.npz", "photos", "--neighbourhood=5"]);
    assert!(other.value("frechet_distance").unwrap() > 1e-3);
    let shown = table::explanation(&explain(&report, &other));
    assert!(shown.contains("evaluation.neighbourhood: 3 and 5") && shown.contains("sample: "), "{shown}");
}

#[test]
fn papers_names_are_refused_and_oddities_are_told() {
    let place = Place::new();
    // Two hundred images of each class in turn, some of them twice.
    let mut pixels = noise(400 * 3, 3);
    for (at, image) in pixels.chunks_exact_mut(3).enumerate() {
        image[0] = image[0] / 4 * 4 + (at / 100) as u8;
    }
    pixels.copy_within(0..3, 600);
    write_images(&place.at("sorted.npz"), &pixels, [400, 1, 1]);
    let report = place.evaluate(&["sorted.npz", "sorted.npz", "--protocol=adm-imagenet-256"]);
    assert!(report.value("fid").is_none() && report.value("inception_score").is_none());
    let verdict = report.verdict.as_ref().unwrap();
    assert!(verdict.departures.iter().any(|it| it.what == "images in the sample" && it.got == "400"));
    assert!(
        report.warnings.iter().any(|it| matches!(it, Warning::SortedByClass { .. })),
        "{:?}",
        report.warnings
    );
    assert!(report.warnings.iter().any(|it| matches!(it, Warning::DuplicateRows { .. })));
    let shown = table::table(&report);
    for part in ["not the numbers of adm-imagenet-256", "expected 50000, got 400", "sorted by class"] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
}

#[test]
fn bad_input_is_named() {
    let place = Place::new();
    write_images(&place.at("good.npz"), &noise(8 * 12, 4), [8, 2, 2]);
    place.refused(&["absent.npz", "good.npz"], &["SAMPLES", "absent.npz", "npz file or a folder"]);
    std::fs::create_dir(place.at("empty")).unwrap();
    place.refused(&["good.npz", "empty"], &["REFERENCES", "empty", ".png"]);
    std::fs::write(place.at("text.npz"), "no archive").unwrap();
    place.refused(&["text.npz", "good.npz"], &["text.npz"]);
    let whole = std::fs::read(place.at("good.npz")).unwrap();
    std::fs::write(place.at("cut.npz"), &whole[..whole.len() / 2]).unwrap();
    place.refused(&["cut.npz", "good.npz"], &["cut.npz"]);

    let refused = |name: &str, arrays: &[(&str, &[usize], ArrayData<'_>)], expected: &[&str]| {
        write_npz(place.at(name), arrays).unwrap();
        place.refused(&[name, "good.npz"], expected);
    };
    refused("type.npz", &[("arr_0", &[1, 1, 1, 3], ArrayData::F32(&[0.0; 3]))], &["arr_0", "|u1", "<f4"]);
    refused("shape.npz", &[("arr_0", &[4, 3], ArrayData::U8(&[0; 12]))], &["arr_0", "shape"]);
    refused("none.npz", &[("arr_0", &[0, 2, 2, 3], ArrayData::U8(&[]))], &["at least one image"]);
    refused("else.npz", &[("x", &[1], ArrayData::U8(&[0]))], &["arr_0", "mu and sigma", "got x"]);
    let [mu, sigma] = [[0.0; 2].as_slice(), [1.0, 2.0, 3.0, 1.0].as_slice()].map(ArrayData::F64);
    refused("skew.npz", &[("mu", &[2], mu), ("sigma", &[2, 2], sigma)], &["mu and sigma", "symmetric"]);
    refused("size.npz", &[("mu", &[2], mu), ("sigma", &[4, 1], sigma)], &["sigma", "shape (2, 2)"]);
    let nan = ArrayData::F64(&[f64::NAN, 0.0, 0.0, 1.0]);
    refused("nan.npz", &[("mu", &[2], mu), ("sigma", &[2, 2], nan)], &["finite", "NaN"]);
    let unit = ArrayData::F64(&[1.0, 0.0, 0.0, 1.0]);
    refused(
        "statistics.npz",
        &[("mu", &[2], mu), ("sigma", &[2, 2], unit)],
        &["SAMPLES", "statistics alone"],
    );

    place.refused(&["good.npz", "good.npz"], &["--weights", "pytorch-fid"]);
    place.refused(&["good.npz", "good.npz", "--extractor=dinov2"], &["--weights", "dinov2_vitl14"]);
    place.refused(&["good.npz", "good.npz", "--protocol=fid"], &["--protocol", "adm-imagenet-256"]);
    let weights = format!("--weights={}", place.at("text.npz").display());
    place.refused(&["good.npz", "good.npz", &weights], &["--weights", "text.npz"]);
    place.refused(&["good.npz", "good.npz", "--out=missing/report.json"], &["--out", "create the folder"]);
    let explained = ["--explain", "text.npz", "good.npz"];
    place.refused(&explained, &["expected a report", "text.npz"]);
}

#[test]
fn statistics_of_another_extractor_are_not_taken() {
    let place = Place::new();
    write_images(&place.at("good.npz"), &noise(8 * 12, 5), [8, 2, 2]);
    let (mu, sigma) =
        (ArrayData::F64(&[0.0; 3]), ArrayData::F64(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]));
    write_npz(place.at("statistics.npz"), &[("mu", &[3], mu), ("sigma", &[3, 3], sigma)]).unwrap();
    let args = place.args(&["good.npz", "statistics.npz"]);
    let job = Job::prepare(&args, &place.at("good.npz"), &place.at("statistics.npz")).unwrap();
    let message = format!("{:#}", job.evaluate(&args, &Means).unwrap_err());
    assert!(message.contains("Inception's") && message.contains("--extractor inception"), "{message}");
}

#[test]
fn the_classifier_needs_no_weights_and_counts_what_is_right() {
    let place = Place::new();
    let pixels = noise(40 * 3072, 6);
    let labels: Vec<i64> = (0..40).map(|it| it % 10).collect();
    let images: (&str, &[usize], ArrayData<'_>) = ("arr_0", &[40, 32, 32, 3], ArrayData::U8(&pixels));
    write_npz(place.at("noise.npz"), &[images, ("arr_1", &[40], ArrayData::I64(&labels))]).unwrap();
    let table = run(&place.args(&["noise.npz", "noise.npz", "--extractor=cifar10-classifier"])).unwrap();
    let report = Report::read(&place.at("noise.npz.evaluation.json")).unwrap();
    assert!(report.value("frechet_distance").unwrap() <= 1e-6, "{table}");
    // Noise looks like one thing or two.
    assert!(report.value("class_accuracy").unwrap() <= 0.3, "{table}");
    let evaluator = &report.protocol.evaluation.evaluator;
    assert_eq!((evaluator.name.as_str(), evaluator.feature_size), ("cifar10-classifier", 192));

    write_images(&place.at("small.npz"), &noise(8 * 12, 7), [8, 2, 2]);
    let small = ["small.npz", "small.npz", "--extractor=cifar10-classifier", "--out=other.json"];
    let message = format!("{:#}", run(&place.args(&small)).unwrap_err());
    assert!(message.contains("32 x 32 pixels, got 2 x 2"), "{message}");
}
