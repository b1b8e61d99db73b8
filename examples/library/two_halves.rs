//! Loads weights and calls the two halves of the network.
//!
//! The condition encoder turns (noisy latent, time, class) into a self-condition; the velocity decoder turns
//! (noisy latent, self-condition) into a velocity. The self-condition changes slowly, so one of them serves
//! several steps: that is all that encoder sharing does.
//!
//! ```sh
//! cargo run --example two_halves
//! cargo run --example two_halves -- weights.safetensors
//! ```

#![allow(clippy::print_stdout, reason = "an example prints")]

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use ddt_flow::noise_batch;
use ddt_model::DdtFile;

fn main() -> Result<()> {
    let device = Device::Cpu;

    // A file that this project wrote describes its network, its classes and its latents.
    let file = match std::env::args().nth(1) {
        Some(path) => DdtFile::open(path)?,
        None => DdtFile::from_bytes(ddt_demo::NETWORK, "the demo")?,
    };
    let cfg = file.config().context("the file does not state the sizes of its network")?;
    let latents = file.latents().context("the file does not state the size of its latents")?;
    println!(
        "{} encoder and {} decoder blocks, {} channels, {} classes",
        cfg.num_encoder_blocks, cfg.num_decoder_blocks, cfg.hidden_size, cfg.num_classes
    );

    // `load` builds the readable, differentiable definition; `freeze` packs its weights for sampling.
    let network = file.load(None, DType::F32, &device)?.freeze()?;

    // Two latents of pure noise, so t = 0, and a class for each.
    let noise = noise_batch(0, &[0, 1], (cfg.in_channels, latents.height, latents.width), &device)?;
    let labels = Tensor::new(&[3_u32, 7], &device)?;
    let t = Tensor::zeros(2, DType::F32, &device)?;

    let z_t = network.encoder().forward(&noise, &t, &labels)?;
    let velocity = network.decoder().forward(&noise, &z_t)?;
    println!("self-condition {:?}, velocity {:?}", z_t.dims(), velocity.dims());
    let whole = network.forward(&noise, &t, &labels)?;
    println!("the halves and the whole network differ by {}", difference(&velocity, &whole)?);

    // Euler steps along the velocity. The old self-condition still gives nearly the velocity that a new one gives.
    let mut x_t = noise;
    let mut velocity = velocity;
    let dt = 0.02;
    for step in 1..=4 {
        x_t = (x_t + (velocity * dt)?)?;
        let t = Tensor::full((f64::from(step) * dt) as f32, 2, &device)?;
        let fresh = network.forward(&x_t, &t, &labels)?;
        velocity = network.decoder().forward(&x_t, &z_t)?;
        let error = difference(&velocity, &fresh)?;
        println!(
            "t = {:.2}: velocity from the first self-condition is off by {:.1} %",
            f64::from(step) * dt,
            100.0 * error
        );
    }
    Ok(())
}

/// `|a - b| / |b|`, over all numbers of the tensors.
fn difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    let norm = |it: &Tensor| it.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
    Ok(f64::from(norm(&(a - b)?)? / norm(b)?))
}
