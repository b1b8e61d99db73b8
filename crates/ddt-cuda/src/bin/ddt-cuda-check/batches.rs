//! Whole batches of real size: their first and last image against the same image in a batch of one.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use ddt_adapters::inception::FoldedInception;
use ddt_cuda::parity::relative_rms;
use ddt_cuda::{
    CudaInception, CudaKlDecoder, CudaSampler, DECODER_BYTES, EulerOptions, GpuError, Precision,
    builder_by_formula, by_formula,
};
use ddt_flow::{Guidance, TimeGrid, noise_batch};
use ddt_kernels::cuda::Cuda;

use crate::{parity::Row, timings::Scale};

/// Runs them; what is not a number anywhere in a batch is an infinite error.
pub(crate) fn run(cuda: &Cuda, scale: &Scale) -> Result<Vec<Row>, GpuError> {
    let mut rows = Vec::new();
    let Some(&(images, latent)) = scale.batches.first() else { return Ok(rows) };
    let channels = scale.autoencoder.latent_channels;
    let latents = batch(images, (channels, latent, latent))?;
    for (precision, shown, tolerance) in [(Precision::F32, "f32", 1e-4), (Precision::Bf16, "bf16", 1e-2)] {
        let decoder =
            CudaKlDecoder::on(cuda, &scale.autoencoder, precision, DECODER_BYTES, builder_by_formula(0))?;
        let error = ends_alone(&latents, &mut |latents| decoder.decode_on_gpu(latents))?;
        rows.push(row(format!("decoder, {images} of {latent}^2"), shown, error, tolerance));
    }
    let (images, side) = scale.pictures;
    let pictures = ((batch(images, (3, side, side))? * 40.0)? + 128.0)?;
    let inception = CudaInception::on(cuda, &FoldedInception::synthetic()?)?;
    let error = ends_alone(&pictures, &mut |it| Ok(inception.forward(it)?.pool))?;
    rows.push(row(format!("Inception, {images} of {side}^2"), "f32", error, 1e-4));

    let (cfg, &(images, latent)) = (&scale.cfg, &scale.batches[0]);
    let noise = batch(images, (cfg.in_channels, latent, latent))?;
    let mut sampler = CudaSampler::on(cuda, cfg, Precision::Bf16, &by_formula(0))?;
    let options = EulerOptions {
        grid: TimeGrid::new(4, Some(0.04), 1.0)?,
        guidance: Guidance::new(2.0, (0.3, 1.0))?,
        plan: None,
    };
    let error = ends_alone(&noise, &mut |noise| {
        let labels = vec![7; noise.dim(0)?];
        Ok(sampler.sample(noise, &labels, &options, &mut |_| ControlFlow::Continue(()))?.latents)
    })?;
    rows.push(row(format!("sampler, {images} of {latent}^2, 4 steps"), "bf16", error, 3e-2));
    Ok(rows)
}

fn batch(images: usize, shape: (usize, usize, usize)) -> Result<Tensor, GpuError> {
    let rows: Vec<u64> = (0..images as u64).collect();
    Ok(noise_batch(0, &rows, shape, &Device::Cpu)?)
}

/// The error of the first and the last of a batch, compared with batches of one.
fn ends_alone(
    all: &Tensor,
    run: &mut dyn FnMut(&Tensor) -> Result<Tensor, GpuError>,
) -> Result<f64, GpuError> {
    let last = all.dim(0)? - 1;
    let together = run(all)?;
    if !together.sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Ok(f64::INFINITY);
    }
    let mut worst = 0f64;
    for image in [0, last] {
        let alone = run(&all.narrow(0, image, 1)?)?;
        worst = worst.max(relative_rms(&together.narrow(0, image, 1)?, &alone)?);
    }
    Ok(worst)
}

fn row(fixture: String, precision: &'static str, relative_rms: f64, tolerance: f64) -> Row {
    Row { fixture, precision, output: "first and last, alone".to_owned(), relative_rms, tolerance }
}
