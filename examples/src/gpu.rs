//! `--device cuda`: sampling on a GPU in the place of the CPU.

use std::ops::ControlFlow;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use ddt_cuda::{CudaSampler, EulerOptions, GpuError, Precision, from_map, gpu_name};
use ddt_model::{ModelError, NetworkConfig, Sampled};

use crate::job::{Job, Model};
use crate::progress::say;
use crate::sampler_args::{Dtype, SamplerArgs};

/// A network on a GPU.
#[derive(Debug)]
pub struct Gpu {
    sampler: CudaSampler,
}

impl Gpu {
    /// Opens the GPU that the job names, with the job's weights; `None` where it names the CPU.
    ///
    /// # Errors
    ///
    /// A number type or a network that the GPU's programs do not have; no such GPU; too little of its memory.
    pub fn open(job: &Job, model: &Model) -> Result<Option<Self>> {
        let Some(place) = place(&job.device, job.dtype)? else { return Ok(None) };
        let found = model.network.config();
        ensure!(
            *found == NetworkConfig::from(job.weights.config.clone()),
            "--device cuda draws with the paper's DDT alone, got {found:?}; draw with --device cpu"
        );
        let tensors = job.weights.tensors()?;
        let sampler =
            CudaSampler::open(place.device, &job.weights.config, place.precision, &from_map(&tensors));
        let sampler = sampler.context("--device")?;
        say(&format!("drawing on {}", sampler.device_name()));
        Ok(Some(Self { sampler }))
    }

    /// As [`ddt_model::sample`]; `on_step` is called when a step is on its way.
    ///
    /// # Errors
    ///
    /// The outer one where the GPU fails, the inner one as on the CPU.
    pub fn sample(
        &mut self,
        job: &Job,
        model: &Model,
        noise: &Tensor,
        labels: &[u32],
        on_step: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Result<Sampled, ModelError>> {
        let plan = model.plan.as_ref();
        let options = EulerOptions { grid: job.grid.clone(), guidance: job.guidance, plan };
        match self.sampler.sample(noise, labels, &options, &mut |_| on_step()) {
            Ok(sampled) => Ok(Ok(sampled)),
            Err(GpuError::Model(error)) => Ok(Err(error)),
            Err(GpuError::Flow(error)) => Ok(Err(error.into())),
            Err(error) => Err(error).context("--device"),
        }
    }
}

/// A GPU and how it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub device: usize,
    /// Of the network and of the autoencoder.
    pub precision: Precision,
}

/// What `--device` and `--dtype` name together; `None` for the CPU.
///
/// # Errors
///
/// A number type that the GPU's programs do not have.
pub fn place(device: &str, dtype: Dtype) -> Result<Option<Place>> {
    let Some(device) = ordinal(device) else { return Ok(None) };
    let precision = match dtype {
        Dtype::F32 => Precision::F32,
        Dtype::Bf16 => Precision::Bf16,
        Dtype::F16 => bail!("--dtype: expected bf16 or f32 with --device cuda, got f16"),
    };
    Ok(Some(Place { device, precision }))
}

/// Checks that a command line that names a GPU asks for what it can do, and that there is one.
///
/// # Errors
///
/// A number type, solver or weaker network that the GPU's programs do not have; no such GPU.
pub fn check(sampler: &SamplerArgs) -> Result<()> {
    let Some(place) = place(&sampler.device, sampler.dtype)? else { return Ok(()) };
    let solver = sampler.solver.as_str();
    ensure!(solver == "euler", "--solver: expected euler with --device cuda, got {solver}");
    ensure!(sampler.weaker.is_none(), "--weaker: expected none with --device cuda");
    gpu_name(place.device).map(drop).context("--device")
}

/// The GPU that `--device` names, from 0; `None` for the CPU.
pub(crate) fn ordinal(device: &str) -> Option<usize> {
    let rest = device.strip_prefix("cuda")?;
    if rest.is_empty() { Some(0) } else { rest.strip_prefix(':')?.parse().ok() }
}

/// The kind of device that `--device` names, where it is not the CPU: images of one kind are alike.
#[must_use]
pub fn kind(device: &str) -> Option<&'static str> {
    ordinal(device).map(|_| "cuda")
}

/// Reads `--device`.
///
/// # Errors
///
/// What is neither `cpu` nor `cuda[:N]`, and a GPU in a build without.
pub(crate) fn parse(text: &str) -> Result<String, String> {
    let built = cfg!(feature = "cuda");
    match text {
        "cpu" => Ok(text.to_owned()),
        _ if ordinal(text).is_some() && built => Ok(text.to_owned()),
        _ if built => Err("expected cpu, cuda, or cuda:N for GPU N from 0".to_owned()),
        _ if ordinal(text).is_some() => {
            Err("expected cpu, the only device of this build; build with --features cuda for GPUs, see docs/CUDA.md"
                .to_owned())
        }
        _ => Err("expected cpu, the only device of this build; leave --device out".to_owned()),
    }
}

/// For the programs that compute on the CPU alone.
///
/// # Errors
///
/// A command line that asks for a GPU.
pub fn refuse(sampler: &SamplerArgs) -> Result<()> {
    let device = &sampler.device;
    ensure!(
        device == "cpu",
        "--device: expected cpu, which is all that this program computes on, got {device}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_numbers() {
        let named = ["cpu", "cuda", "cuda:3", "cuda:", "cuda:x", "cuda3", "gpu"].map(ordinal);
        assert_eq!(named, [None, Some(0), Some(3), None, None, None, None]);
        assert_eq!([kind("cpu"), kind("cuda:1")], [None, Some("cuda")]);
        assert_eq!(place("cpu", Dtype::F16).unwrap(), None);
        let bf16 = Place { device: 3, precision: Precision::Bf16 };
        assert_eq!(place("cuda:3", Dtype::Bf16).unwrap(), Some(bf16));
        assert!(place("cuda", Dtype::F16).unwrap_err().to_string().contains("bf16 or f32"));
        assert!(parse("cpu").is_ok());
        assert_eq!(parse("cuda:1").is_ok(), cfg!(feature = "cuda"));
        assert!(parse("gpu").unwrap_err().contains("expected cpu"));
    }
}
