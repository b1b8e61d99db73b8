//! Photos a second: decoding, the centre crop to 256, and both by a loader on two threads.
//!
//! Photos are the JPEG and PNG files in the folder named by `DDT_BENCH_PHOTOS`; without it, ImageNet photos
//! beside the repository, and where there are none nothing is measured.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr, reason = "a failure should stop")]

use std::{hint::black_box, path::PathBuf, sync::Arc};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ddt_data::{ImageFolder, Limits, Loader, LoaderOptions, Rgb8, center_crop, decode_rgb8};

const SIZE: u32 = 256;
const THREADS: usize = 2;

fn photos() -> Option<Arc<ImageFolder>> {
    let named = std::env::var_os("DDT_BENCH_PHOTOS").map(PathBuf::from);
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/imagenet-photos"));
    ImageFolder::flat(named.unwrap_or_else(beside)).ok().map(Arc::new)
}

fn decode(c: &mut Criterion) {
    let Some(folder) = photos() else {
        eprintln!("skipped: there are no photos; name a folder of them in DDT_BENCH_PHOTOS");
        return;
    };
    let limits = Limits::default();
    let files: Vec<Vec<u8>> =
        (0..folder.len()).map(|it| std::fs::read(folder.path(it).unwrap()).unwrap()).collect();
    let images: Vec<Rgb8> = files.iter().map(|it| decode_rgb8(it, &limits).unwrap()).collect();
    let pixels: u64 = images.iter().map(|it| u64::from(it.width()) * u64::from(it.height())).sum();
    eprintln!(
        "{} photos of {:.3} megapixels on average",
        images.len(),
        pixels as f64 / images.len() as f64 / 1e6
    );

    let mut group = c.benchmark_group("photos");
    group.sample_size(10).throughput(Throughput::Elements(images.len() as u64));
    group.bench_function("decode-1-thread", |b| {
        b.iter(|| files.iter().for_each(|it| drop(black_box(decode_rgb8(it, &limits).unwrap()))))
    });
    group.bench_function("crop-256-1-thread", |b| {
        b.iter(|| images.iter().for_each(|it| drop(black_box(center_crop(it, SIZE).unwrap()))))
    });
    group.bench_function("loader-256-2-threads", |b| {
        b.iter(|| {
            let options = LoaderOptions::new(SIZE, THREADS);
            let loader = Loader::new(folder.clone(), 0..folder.len(), options).unwrap();
            assert_eq!(loader.map(Result::unwrap).count(), images.len());
        })
    });
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
