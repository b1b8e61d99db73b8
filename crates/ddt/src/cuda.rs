//! Sampling on an NVIDIA GPU.

use std::{
    ops::ControlFlow,
    sync::{Mutex, PoisonError},
};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddt_adapters::{KlConfig, KlDecoder, load_network};
use ddt_cuda::{Cuda, CudaKlDecoder, CudaSampler, DECODER_BYTES, EulerOptions, GpuError, Precision};
use ddt_files::Checkpoint;
use ddt_model::{DdtFile, ModelError, NetworkConfig, SampleOptions, Sampled};

use crate::{
    config::{Dtype, PipelineConfig, name_of},
    decoding::Decoder,
    error::{Context, Result, invalid},
};

const BLAME: &str = "the GPU";

/// A network on a GPU; one batch runs at a time.
pub(crate) struct CudaEngine {
    sampler: Mutex<CudaSampler>,
}

impl CudaEngine {
    pub(crate) fn open(
        config: &PipelineConfig,
        network: &NetworkConfig,
        file: &DdtFile,
        number: usize,
    ) -> Result<Self> {
        let sizes = &network.sizes;
        if *network != NetworkConfig::from(sizes.clone()) {
            return invalid(format!(
                "device cuda runs the paper's DDT only, got {}; use device cpu",
                name_of(network)
            ));
        }
        let weights = file.weights(Some(network))?.into_iter().collect();
        let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        let cuda = Cuda::open(number).context(BLAME)?;
        let sampler = CudaSampler::new(&cuda, sizes, precision(config)?, &weights);
        Ok(Self { sampler: Mutex::new(sampler.context(BLAME)?) })
    }

    pub(crate) fn sample(
        &self,
        noise: &Tensor,
        labels: &[u32],
        options: &SampleOptions<'_>,
        on_step: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Result<Sampled, ModelError>> {
        check_solver(options.solver.name())?;
        let SampleOptions { grid, guidance, plan, .. } = options.clone();
        let options = EulerOptions { grid, guidance, plan };
        let mut sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        match sampler.sample(noise, labels, &options, &mut |_| on_step()) {
            Ok(sampled) => Ok(Ok(sampled)),
            Err(GpuError::Model(error)) => Ok(Err(error)),
            Err(error) => Err(error).context(BLAME),
        }
    }
}

/// Whether the GPU's programs do what the settings ask for.
pub(crate) fn serves(config: &PipelineConfig, network: &NetworkConfig) -> bool {
    let is_ddt = *network == NetworkConfig::from(network.sizes.clone());
    is_ddt
        && decodes(config)
        && check_solver(config.solver.as_str()).is_ok()
        && config.guiding_network.is_none()
}

/// Whether there are programs in the settings' type.
pub(crate) fn decodes(config: &PipelineConfig) -> bool {
    precision(config).is_ok()
}

/// Checks that the settings ask for what the GPU's programs have, and that there is such a GPU.
pub(crate) fn check(config: &PipelineConfig, number: usize) -> Result<()> {
    precision(config)?;
    check_solver(config.solver.as_str())?;
    if config.guiding_network.is_some() {
        return invalid("expected no guiding network with device cuda");
    }
    Cuda::open(number).map(drop).context(BLAME)
}

fn check_solver(name: &str) -> Result<()> {
    match name {
        "euler" => Ok(()),
        _ => invalid(format!("expected solver euler with device cuda, got {name}")),
    }
}

pub(crate) fn load_kl_decoder(
    cfg: &KlConfig,
    file: &Checkpoint,
    config: &PipelineConfig,
    number: usize,
) -> Result<Decoder> {
    let (cuda, precision) = (Cuda::open(number).context(BLAME)?, precision(config)?);
    let decoder = load_network(file, DType::F32, &Device::Cpu, KlDecoder::reads, |vb| {
        CudaKlDecoder::new(&cuda, cfg, precision, DECODER_BYTES, vb).map_err(candle_core::Error::wrap)
    });
    Ok(Box::new(decoder.context(BLAME)?))
}

fn precision(config: &PipelineConfig) -> Result<Precision> {
    match config.dtype {
        Dtype::F32 => Ok(Precision::F32),
        Dtype::Bf16 => Ok(Precision::Bf16),
        Dtype::F16 => invalid("expected dtype bf16 or f32 with device cuda, got f16"),
    }
}
