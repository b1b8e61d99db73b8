//! Fixtures, and whole batches of real size: their first and last image against the same image in a batch of one.

use std::{ops::ControlFlow, path::Path};

use anyhow::Result;
use candle_core::{Device, Tensor};
use ddt_adapters::inception::FoldedInception;
use ddt_cuda::{
    Cuda, CudaInception, CudaKlDecoder, CudaSampler, DECODER_BYTES, EulerOptions, Precision,
    synthetic_weights,
};
use ddt_flow::{Guidance, TimeGrid, noise_batch};
use ddt_parity::{Comparison, Fixture, Tolerance, compare_on_gpu, fixtures_in};
use ddt_sharing::{ForecastOrder, SharingPlan};

use crate::timings::Scale;

/// One output of one fixture or batch.
pub(crate) struct Row {
    pub(crate) fixture: String,
    pub(crate) precision: Precision,
    pub(crate) output: Comparison,
}

/// Every fixture in a folder that a GPU has programs for; none where there is no folder.
pub(crate) fn fixtures(folder: &Path, cuda: &Cuda) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for path in fixtures_in(folder).unwrap_or_default() {
        let Ok(fixture) = Fixture::open(&path) else { continue };
        if fixture.text("kind").is_err() {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for precision in [Precision::F32, Precision::Bf16] {
            let outputs = compare_on_gpu(&fixture, cuda, precision)?;
            rows.extend(outputs.into_iter().map(|output| Row { fixture: name.clone(), precision, output }));
        }
    }
    Ok(rows)
}

/// Whole batches; a NaN anywhere in one is an infinite error.
pub(crate) fn batches(cuda: &Cuda, scale: &Scale) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let Some(&(images, latent)) = scale.batches.first() else { return Ok(rows) };
    let channels = scale.autoencoder.latent_channels;
    let latents = batch(images, (channels, latent, latent))?;
    for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 1e-2)] {
        let decoder =
            CudaKlDecoder::new(cuda, &scale.autoencoder, precision, DECODER_BYTES, synthetic_weights(0))?;
        let error = ends_alone(&latents, &mut |latents| Ok(decoder.decode_on_gpu(latents)?))?;
        rows.push(row(format!("decoder, {images} of {latent}^2"), precision, error, tolerance));
    }
    let (pictures, side) = scale.pictures;
    let pixels = ((batch(pictures, (3, side, side))? * 40.0)? + 128.0)?;
    let inception = CudaInception::new(cuda, &FoldedInception::synthetic(&candle_core::Device::Cpu)?)?;
    let error = ends_alone(&pixels, &mut |it| Ok(inception.forward(it)?.pool))?;
    rows.push(row(format!("Inception, {pictures} of {side}^2"), Precision::F32, error, 1e-4));

    let noise = batch(images, (scale.cfg.in_channels, latent, latent))?;
    let mut sampler = CudaSampler::new(cuda, &scale.cfg, Precision::Bf16, &synthetic_weights(0))?;
    // Forecasts from one, two and three runs of the encoder.
    let forecasts = SharingPlan::new(vec![0, 2, 4], 7)?.with_order(ForecastOrder::Quadratic);
    for (steps, plan, name) in [(4, None, "4 steps"), (7, Some(&forecasts), "7 steps, forecasts")] {
        let options = EulerOptions {
            grid: TimeGrid::new(steps, Some(0.04), 1.0)?,
            guidance: Guidance::new(2.0, (0.3, 1.0))?,
            plan,
        };
        let error = ends_alone(&noise, &mut |noise| {
            let labels = vec![7; noise.dim(0)?];
            Ok(sampler.sample(noise, &labels, &options, &mut |_| ControlFlow::Continue(()))?.latents)
        })?;
        rows.push(row(format!("sampler, {images} of {latent}^2, {name}"), Precision::Bf16, error, 3e-2));
    }
    Ok(rows)
}

fn batch(images: usize, shape: (usize, usize, usize)) -> Result<Tensor> {
    let rows: Vec<u64> = (0..images as u64).collect();
    Ok(noise_batch(0, &rows, shape, &Device::Cpu)?)
}

/// The error of the first and the last of a batch, compared with batches of one.
fn ends_alone(all: &Tensor, run: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<f64> {
    let last = all.dim(0)? - 1;
    let together = run(all)?;
    if !together.sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Ok(f64::INFINITY);
    }
    let mut worst = 0f64;
    for image in [0, last] {
        let alone = run(&all.narrow(0, image, 1)?)?;
        worst = worst.max(ddt_parity::relative_rms(&together.narrow(0, image, 1)?, &alone)?);
    }
    Ok(worst)
}

fn row(fixture: String, precision: Precision, relative_rms: f64, tolerance: f64) -> Row {
    let name = "first and last, alone".to_owned();
    let tolerance = Tolerance::RelativeRms(tolerance);
    Row { fixture, precision, output: Comparison { name, relative_rms, largest: f64::NAN, tolerance } }
}
