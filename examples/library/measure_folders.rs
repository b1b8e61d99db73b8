//! Measures how far two folders of images are apart: Fréchet distance, precision and recall.
//!
//! FID compares features of Inception, whose weights must be downloaded (`ddt evaluate` does that). This program
//! compares means of the demo autoencoder's latents instead: its numbers compare with each other, and with nothing
//! published. Without paths it makes two folders of demo images, of 3 and 15 sampling steps.
//!
//! ```sh
//! cargo run --example measure_folders
//! cargo run --example measure_folders -- samples photos
//! ```

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use ddt::{Pipeline, PipelineConfig, Request, flow::TimeGrid, picture::encode_png};
use ddt_adapters::{Encode, LatentSpace, TinyEncoder, from_rgb8};
use ddt_data::{ImageFolder, Loader, LoaderOptions};
use ddt_files::Checkpoint;
use ddt_metrics::{Features, NEIGHBOURHOOD, Statistics, frechet_distance, precision_recall};

/// Images are cropped to squares of this side.
const SIDE: usize = 32;

fn main() -> Result<()> {
    let folders: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [samples, references] = match <[PathBuf; 2]>::try_from(folders) {
        Ok(given) => given,
        Err(none) if none.is_empty() => [generate(3)?, generate(15)?],
        Err(other) => bail!("expected two folders or none, got {}", other.len()),
    };

    let file = Checkpoint::from_bytes(ddt_demo::TINY_ENCODER, "the demo's encoder")?;
    let encoder = TinyEncoder::load(&file, DType::F32, &Device::Cpu)?;
    let size = encoder.latent_channels();
    let (samples, references) = (extract(&samples, &encoder)?, extract(&references, &encoder)?);
    let (samples, references) = (Features::new(&samples, size)?, Features::new(&references, size)?);

    let distance = frechet_distance(&Statistics::of(samples)?, &Statistics::of(references)?)?;
    println!("Fréchet distance {:.4}", distance.distance);
    for warning in &distance.warnings {
        println!("  careful: {warning}");
    }
    let overlap = precision_recall(samples, references, NEIGHBOURHOOD)?;
    println!("precision {:.2}, recall {:.2}", overlap.precision, overlap.recall);
    Ok(())
}

/// Features of all images in a folder, row after row: the mean of each latent channel.
fn extract(folder: &Path, encoder: &TinyEncoder) -> Result<Vec<f32>> {
    let images = Arc::new(ImageFolder::detect(folder)?);
    println!("{}: {} images", folder.display(), images.len());
    let mut features = Vec::new();
    // Two threads decode ahead while the encoder works.
    for image in Loader::new(images.clone(), 0..images.len(), LoaderOptions::new(SIDE as u32, 2))? {
        let pixels: Tensor = from_rgb8(image?.pixels.as_bytes(), (SIDE, SIDE), &Device::Cpu)?;
        features.extend(encoder.encode(&pixels)?.mean((2, 3))?.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(features)
}

/// A folder of 100 demo images, made with this number of steps.
fn generate(steps: usize) -> Result<PathBuf> {
    let mut config = PipelineConfig::new("demo");
    config.grid = Some(TimeGrid::new(steps, None, 1.0)?);
    let request = Request { batch: 20, ..Request::new(Vec::from_iter(0..10), 10) };
    let generated = Pipeline::new(&config)?.generate(&request, &mut |_| ControlFlow::Continue(()))?;
    let folder = PathBuf::from(format!("out/measure_folders/{steps}-steps"));
    std::fs::create_dir_all(&folder)?;
    for (number, image) in generated.images.iter().enumerate() {
        std::fs::write(folder.join(format!("{number}.png")), encode_png(image, &[])?)?;
    }
    Ok(folder)
}
