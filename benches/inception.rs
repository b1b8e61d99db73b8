//! Images a second of the Inception features that samples are measured with, with weights of zeros: the arithmetic
//! is the same.
//!
//! `cargo bench --bench inception [-- SECONDS]`

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a failure should stop")]

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_adapters::Inception;

/// Images in a batch, and pixels along their sides: as the features' own size, so that nothing is resized.
const BATCH: usize = 16;
const SIDE: usize = 299;

fn main() -> Result<()> {
    let seconds = std::env::args().find_map(|it| it.parse().ok()).unwrap_or(10);
    let device = Device::Cpu;
    ddt_kernels::retain_freed_memory();
    let network = Inception::new(VarBuilder::zeros(DType::F32, &device))?;
    let pixels = Tensor::zeros((BATCH, 3, SIDE, SIDE), DType::F32, &device)?;
    network.forward(&pixels)?;
    let (start, mut images, mut best) = (Instant::now(), 0, 0.0_f64);
    while start.elapsed() < Duration::from_secs(seconds) {
        let batch = Instant::now();
        network.forward(&pixels)?;
        best = best.max(BATCH as f64 / batch.elapsed().as_secs_f64());
        images += BATCH;
    }
    println!("{:.2} images/s, best batch {best:.2}", images as f64 / start.elapsed().as_secs_f64());
    Ok(())
}
