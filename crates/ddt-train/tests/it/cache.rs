//! Latents on disk.

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use ddt_train::{
    CacheContent, EncodedImages, FeatureShape, LatentCache, LatentCacheWriter, LatentDataset, Pick,
    TrainError,
};

const IMAGES: usize = 11;

pub(crate) fn content() -> CacheContent {
    CacheContent {
        made_from: BTreeMap::from([("autoencoder".to_owned(), "one".to_owned())]),
        classes: vec!["cat".to_owned(), "dog".to_owned()],
        shape: (2, 3, 4),
        posterior: true,
        flips: true,
        features: Some(FeatureShape { grid: (2, 1), dim: 3 }),
    }
}

/// Images `from..to`: every value says which image and which field it is.
pub(crate) fn encoded(from: usize, to: usize) -> EncodedImages {
    let field = |base: f32, shape: &[usize]| {
        let size: usize = shape.iter().product();
        let values: Vec<f32> = (from..to).flat_map(|i| vec![base + i as f32; size]).collect();
        let shape: Vec<usize> = [to - from].iter().chain(shape).copied().collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let fields = [
        ("latents", field(0.0, &[2, 3, 4])),
        ("std", field(100.0, &[2, 3, 4])),
        ("features", field(200.0, &[2, 3])),
        ("flipped.latents", field(300.0, &[2, 3, 4])),
        ("flipped.std", field(400.0, &[2, 3, 4])),
        ("flipped.features", field(500.0, &[2, 3])),
    ];
    let fields = fields.into_iter().map(|(name, it)| (name.to_owned(), it)).collect();
    EncodedImages { labels: (from..to).map(|i| i as u32 % 2).collect(), fields }
}

fn open(folder: &Path) -> LatentCacheWriter {
    LatentCacheWriter::open(folder, content(), DType::F16, 4).unwrap()
}

/// Pushes two images at a time, and stops after some pushes.
fn fill(folder: &Path, pushes: usize) -> bool {
    let mut writer = open(folder);
    if writer.is_finished() {
        return true;
    }
    for _ in 0..pushes {
        let from = writer.source_end() as usize;
        if from >= IMAGES {
            writer.finish().unwrap();
            return true;
        }
        let to = (from + 2).min(IMAGES);
        writer.push(encoded(from, to), to as u64).unwrap();
    }
    false
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |it: fs::DirEntry| (it.file_name().into_string().unwrap(), fs::read(it.path()).unwrap());
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|it| read(it.unwrap())).collect();
    files.sort();
    files
}

#[test]
fn what_goes_in_comes_out_normalised() {
    let folder = tempfile::tempdir().unwrap();
    assert!(fill(folder.path(), 100));
    let cache = LatentCache::open(folder.path()).unwrap();
    cache.verify(|_, _| {}).unwrap();
    let (mean, std) = cache.channel_statistics();
    // 0 to 10: mean 5, variance 10.
    assert!((mean[1] - 5.0).abs() < 1e-9 && (std[0] - 10f64.sqrt()).abs() < 1e-9, "{mean:?} {std:?}");
    let cache = cache.normalised_with(&[1.0, 1.0], &[2.0, 4.0]).unwrap();
    let data = LatentDataset::cached(cache);
    assert_eq!((data.len(), data.shape()), (IMAGES, (2, 3, 4)));
    let picks = [Pick { image: 9, flipped: false }, Pick { image: 3, flipped: true }];
    let batch = data.batch(&picks, &Device::Cpu).unwrap();
    let per_channel = |it: &Tensor| -> Vec<Vec<f32>> { it.mean((2, 3)).unwrap().to_vec2().unwrap() };
    assert_eq!(per_channel(&batch.latents), [[4.0, 2.0], [151.0, 75.5]]);
    assert_eq!(per_channel(&batch.posterior_std.unwrap()), [[54.5, 27.25], [201.5, 100.75]]);
    assert_eq!(batch.labels, [1, 1]);
    let features = batch.features.unwrap();
    assert_eq!((features.grid, features.tokens.dims()), ((2, 1), [2, 2, 3].as_slice()));
    assert_eq!(features.tokens.mean((1, 2)).unwrap().to_vec1::<f32>().unwrap(), [209.0, 503.0]);
}

#[test]
fn stopping_anywhere_changes_no_byte() {
    let whole = tempfile::tempdir().unwrap();
    assert!(fill(whole.path(), 100));
    for pushes in 1..=6 {
        let folder = tempfile::tempdir().unwrap();
        // Images that are in no file yet are encoded again, so enough pushes are needed to make one.
        assert!(!fill(folder.path(), pushes));
        while !fill(folder.path(), 3) {}
        assert_eq!(files(folder.path()), files(whole.path()), "stopped after {pushes} pushes");
    }
}

#[test]
fn another_cache_is_refused_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!fill(folder.path(), 3));
    let unfinished = LatentCache::open(folder.path()).unwrap_err().to_string();
    assert!(unfinished.contains("not finished"), "{unfinished}");
    let mut other = content();
    other.made_from.insert("autoencoder".to_owned(), "two".to_owned());
    let message = LatentCacheWriter::open(folder.path(), other, DType::F16, 4).unwrap_err().to_string();
    assert!(message.contains("autoencoder two") && message.contains("autoencoder one"), "{message}");
    let other = CacheContent { flips: false, ..content() };
    let message = LatentCacheWriter::open(folder.path(), other, DType::F16, 4).unwrap_err().to_string();
    assert!(message.contains("flips false") && message.contains("flips true"), "{message}");
    let _held = open(folder.path());
    assert!(matches!(
        LatentCacheWriter::open(folder.path(), content(), DType::F16, 4),
        Err(TrainError::Locked { .. })
    ));
}

#[test]
fn damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    assert!(fill(folder.path(), 100));
    let damage = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = folder.path().join(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        change(&mut bad);
        fs::write(&path, bad).unwrap();
        let outcome = LatentCache::open(folder.path()).and_then(|it| it.verify(|_, _| {}));
        fs::write(&path, good).unwrap();
        outcome.unwrap_err().to_string()
    };
    let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    assert!(damage("shard-00001.safetensors", &flip).contains("shard-00001"));
    assert!(damage("shard-00000.safetensors", &|it| it.truncate(100)).contains("shard-00000"));
    assert!(damage("index.json", &|it| it.truncate(100)).contains("index.json"));
    let replace = |from: &'static str, to: &'static str| {
        move |it: &mut Vec<u8>| *it = String::from_utf8(it.clone()).unwrap().replace(from, to).into_bytes()
    };
    damage("index.json", &replace("\"version\": 1", "\"version\": 9"));
    damage("index.json", &replace("\"images\": 4", "\"images\": 5"));
    damage("index.json", &replace("\"posterior\": true", "\"posterior\": 7"));
    damage("index.json", &replace("\"dog\"", "\"dog\", \"emu\", 3"));
    fs::remove_file(folder.path().join("shard-00002.safetensors")).unwrap();
    assert!(LatentCache::open(folder.path()).is_err());
}

#[test]
fn wrong_images_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = open(folder.path());
    let refused = |outcome: Result<(), TrainError>| assert!(matches!(outcome, Err(TrainError::Data { .. })));
    let mut lacking = encoded(0, 2);
    lacking.fields.remove("std");
    refused(writer.push(lacking, 2));
    let mut label = encoded(0, 2);
    label.labels[1] = 2;
    refused(writer.push(label, 2));
    let mut count = encoded(0, 2);
    count.labels.push(0);
    refused(writer.push(count, 2));
    writer.push(EncodedImages { labels: vec![], fields: BTreeMap::new() }, 2).unwrap();
    refused(writer.finish());
}
