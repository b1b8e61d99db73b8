//! An autoencoder without a network: encodes a photo to latents and decodes them again.
//!
//! Writes `out/autoencoder.png`: the photo and its reconstruction. Without a path it makes a picture to encode.
//!
//! ```sh
//! cargo run --example autoencoder
//! cargo run --example autoencoder -- photo.jpg
//! ```

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device};
use ddt_adapters::{Decode, Encode, TinyDecoder, TinyEncoder, from_rgb8, to_rgb8};
use ddt_data::{Limits, center_crop, read_rgb8};
use ddt_files::Checkpoint;
use ddt_picture::{Grid, Rgb8, encode_png};

/// Pixels along a side.
const SIDE: u32 = 256;

fn main() -> Result<()> {
    let device = Device::Cpu;
    let photo = match std::env::args().nth(1) {
        Some(path) => center_crop(&read_rgb8(Path::new(&path), &Limits::default())?, SIDE)?.into_bytes(),
        None => picture(),
    };

    // The two halves are files of their own, and are loaded on their own.
    let encoder = Checkpoint::from_bytes(ddt_demo::TINY_ENCODER, "the demo's encoder")?;
    let encoder = TinyEncoder::load(&encoder, DType::F32, &device)?;
    let decoder = Checkpoint::from_bytes(ddt_demo::TINY_DECODER, "the demo's decoder")?;
    let decoder = TinyDecoder::load(&decoder, DType::F32, &device)?;

    let side = SIDE as usize;
    let pixels = from_rgb8(&photo, (side, side), &device)?; // (1, 3, H, W) in [-1, 1]
    let latents = encoder.encode(&pixels)?; // (1, 32, H / 8, W / 8)
    let decoded = to_rgb8(&decoder.decode(&latents)?)?.concat();
    println!("pixels {:?}, latents {:?}", pixels.dims(), latents.dims());

    let squares = photo.iter().zip(&decoded).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    let mean = squares.sum::<f64>() / photo.len() as f64;
    println!("peak signal to noise ratio {:.1} dB", 10.0 * (255.0 * 255.0 / mean).log10());

    let images = [Rgb8::new(SIDE, SIDE, photo)?, Rgb8::new(SIDE, SIDE, decoded)?];
    let page = Grid {
        row_labels: &["".to_owned()],
        column_labels: &["photo".to_owned(), "decoded".to_owned()],
        images: &images,
        ..Grid::default()
    };
    std::fs::create_dir_all("out")?;
    std::fs::write("out/autoencoder.png", encode_png(&page.draw()?, &[])?)?;
    println!("wrote out/autoencoder.png");
    Ok(())
}

/// Rings of changing colour and width, as bytes of red, green and blue.
fn picture() -> Vec<u8> {
    let pixel = |i: u32| {
        let (x, y) = (f64::from(i % SIDE) / 128.0 - 1.0, f64::from(i / SIDE) / 128.0 - 1.0);
        let wave = |phase: f64| (127.5 + 127.5 * (12.0 * (x * x + y * y) + phase * x).sin()) as u8;
        [wave(0.0), wave(2.0), wave(-3.0)]
    };
    (0..SIDE * SIDE).flat_map(pixel).collect()
}
