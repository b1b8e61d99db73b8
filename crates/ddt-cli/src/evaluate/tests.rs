//! Comparisons by an extractor that needs no weights.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Parser;
use ddt::{
    files::npz::{ArrayData, write_npz},
    picture::{Rgb8, encode_png},
};
use ddt_metrics::{Report, Warning, explain};
use sha2::{Digest, Sha256};

use super::{
    Args, explanation,
    extractor::{Extracted, Extractor, Rows},
    input::Chunk,
    table,
};
use crate::terminal::{Cancel, Terminal};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

/// Sees the mean of each channel; its spatial features and its class are the first bytes.
fn means() -> Extractor {
    let extract = |images: &Chunk| -> Result<Extracted> {
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
    };
    let (name, weights_sha256) = ("means".to_owned(), "none".to_owned());
    Extractor { name, weights_sha256, class_names: &[], extract: Box::new(extract) }
}

/// Bytes without a pattern.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let block = |i: u32| Sha256::digest([seed.to_le_bytes(), i.to_le_bytes()].concat());
    (0..).flat_map(block).take(len).collect()
}

fn write_images(path: &Path, pixels: &[u8], shape: [usize; 3]) {
    let [num_images, height, width] = shape;
    write_npz(path, &[("arr_0", &[num_images, height, width, 3], ArrayData::U8(pixels))]).unwrap();
}

/// A folder of files, which command lines name.
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

    fn evaluate(&self, line: &[&str]) -> Result<Report> {
        let path = |word: &&str| {
            if word.starts_with("--") { (*word).into() } else { self.at(word).into_os_string() }
        };
        let cache = ["--cache".into(), self.at("features").into_os_string()];
        let words = std::iter::once("evaluate".into()).chain(line.iter().map(path)).chain(cache);
        let terminal = Terminal::new(true, Cancel::default());
        Cli::parse_from(words).args.prepare(&terminal)?.evaluate(&means())
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
        let bytes = encode_png(&Rgb8::new(5, 4, image.to_vec()).unwrap(), &[]).unwrap();
        std::fs::write(place.at(&format!("photos/{at}.png")), bytes).unwrap();
    }

    // A sample against itself, as a folder.
    let report = place.evaluate(&["samples.npz", "photos"]).unwrap();
    assert!(report.value("frechet_distance").unwrap() <= 1e-6);
    assert!(report.value("spatial_frechet_distance").unwrap() <= 1e-6);
    assert_eq!((report.value("precision"), report.value("recall")), (Some(1.0), Some(1.0)));
    assert!(report.value("class_score").unwrap() > 1.5);
    assert_eq!(report.protocol.sample.as_ref().unwrap()["protocol"]["solver"], "euler");
    assert_eq!(report.protocol.evaluation.references.image_size, Some((4, 5)));
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    let shown = table(&report);
    assert!(shown.contains("frechet_distance") && shown.contains("samples.npz (300 images)"), "{shown}");

    // Features come from the cache, and other samples have other numbers.
    let before = std::fs::read_dir(place.at("features")).unwrap().count();
    assert_eq!(place.evaluate(&["samples.npz", "photos"]).unwrap(), report);
    assert_eq!(std::fs::read_dir(place.at("features")).unwrap().count(), before);
    write_images(&place.at("other.npz"), &noise(40 * 60, 2), [40, 4, 5]);
    let other = place.evaluate(&["other.npz", "photos", "--neighbourhood=5"]).unwrap();
    assert!(other.value("frechet_distance").unwrap() > 1e-3);
    let shown = explanation(&explain(&report, &other));
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
    let report = place.evaluate(&["sorted.npz", "sorted.npz", "--protocol=adm-imagenet-256"]).unwrap();
    assert!(report.value("fid").is_none() && report.value("inception_score").is_none());
    let verdict = report.verdict.as_ref().unwrap();
    assert!(verdict.departures.iter().any(|it| it.what == "images in the sample" && it.got == "400"));
    assert!(
        report.warnings.iter().any(|it| matches!(it, Warning::SortedByClass { .. })),
        "{:?}",
        report.warnings
    );
    assert!(report.warnings.iter().any(|it| matches!(it, Warning::DuplicateRows { .. })));
    let shown = table(&report);
    for part in ["not the numbers of adm-imagenet-256", "expected 50000, got 400", "sorted by class"] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
}

#[test]
fn statistics_of_another_extractor_are_not_taken() {
    let place = Place::new();
    write_images(&place.at("good.npz"), &noise(8 * 12, 5), [8, 2, 2]);
    let (mu, sigma) =
        (ArrayData::F64(&[0.0; 3]), ArrayData::F64(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]));
    write_npz(place.at("statistics.npz"), &[("mu", &[3], mu), ("sigma", &[3, 3], sigma)]).unwrap();
    let message = format!("{:#}", place.evaluate(&["good.npz", "statistics.npz"]).unwrap_err());
    assert!(message.contains("Inception's") && message.contains("--extractor inception"), "{message}");
}
