//! Samples with several strengths of classifier-free guidance, from the same noise.
//!
//! Writes `out/guidance.png`: a row for each guidance scale. Without guidance (scale 1) images are varied and often
//! vague; stronger guidance makes them clearer and more alike.
//!
//! ```sh
//! cargo run --example guidance
//! ```

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use ddt_adapters::{Decode, LatentSpace, TinyDecoder, to_rgb8};
use ddt_files::Checkpoint;
use ddt_flow::{AdamsBashforth, Guidance, TimeGrid, noise_batch};
use ddt_model::{DdtFile, SampleOptions, sample};
use ddt_picture::{Grid, Rgb8, encode_png};

fn main() -> Result<()> {
    let device = Device::Cpu;
    let file = DdtFile::from_bytes(ddt_demo::NETWORK, "the demo")?;
    let info = file.latents().context("the demo describes its latents")?;
    let classes = file.classes().context("the demo names its classes")?;
    let network = file.load(None, DType::F32, &device)?.freeze()?;
    let decoder = Checkpoint::from_bytes(ddt_demo::TINY_DECODER, "the demo's decoder")?;
    let decoder = TinyDecoder::load(&decoder, DType::F32, &device)?;

    // The network generates normalised latents; the decoder takes the autoencoder's own.
    let channel = |values: &[f64]| Tensor::new(values, &device)?.to_dtype(DType::F32)?.reshape((1, (), 1, 1));
    let (mean, std) = (channel(&info.mean)?, channel(&info.std)?);

    // One image of each class. Noise depends on the seed and the number of the image only.
    let labels: Vec<u32> = (0..classes.len() as u32).collect();
    let images: Vec<u64> = (0..classes.len() as u64).collect();
    let noise = noise_batch(0, &images, (decoder.latent_channels(), info.height, info.width), &device)?;

    let solver = AdamsBashforth::new(2)?;
    let scales = [1.0, 2.0, 4.0];
    let mut pictures = Vec::new();
    for scale in scales {
        let options = SampleOptions {
            grid: TimeGrid::new(25, None, 1.0)?,
            solver: &solver,
            // Guidance hurts the first steps, where all images are still possible.
            guidance: Guidance::new(scale, (0.1, 1.0))?,
            plan: None,
        };
        let sampled = sample(&network, &noise, &labels, &options, &mut |_| ControlFlow::Continue(()))?;
        println!("scale {scale}: {} calls of the network", sampled.calls.decoder);
        let latents = sampled.latents.broadcast_mul(&std)?.broadcast_add(&mean)?;
        let pixels = decoder.decode(&latents)?; // (B, 3, H, W) in [-1, 1]
        let (_, _, height, width) = pixels.dims4()?;
        for bytes in to_rgb8(&pixels)? {
            pictures.push(Rgb8::new(width as u32, height as u32, bytes)?);
        }
    }

    let rows = scales.map(|it| format!("scale {it}"));
    let page =
        Grid { row_labels: &rows, column_labels: classes, images: &pictures, ..Grid::default() }.draw()?;
    std::fs::create_dir_all("out")?;
    std::fs::write("out/guidance.png", encode_png(&page, &[])?)?;
    println!("wrote out/guidance.png");
    Ok(())
}
