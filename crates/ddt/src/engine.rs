//! The device that runs the network: the CPU, or a GPU in a build with CUDA.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use ddt_adapters::{KlConfig, KlDecoder, RaeDecoder, RaeDecoderConfig, RaeStatistics};
use ddt_files::Checkpoint;
use ddt_flow::StepReport;
use ddt_model::{
    DdtFile, ModelError, NetworkConfig, SampleOptions, Sampled, VelocityNetwork, sample, sample_autoguided,
};

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{
    config::{Dtype, PipelineConfig, Place},
    decoding::Decoder,
    error::Result,
};

/// Callback of an engine after every step, with the step's report where the latents are available.
pub(crate) type OnStep<'a> = dyn FnMut(Option<&StepReport<'_>>) -> ControlFlow<()> + 'a;

/// A network that is ready to run.
pub(crate) enum Engine {
    /// A network on the CPU.
    Cpu {
        /// The network.
        network: Box<dyn VelocityNetwork>,
        /// The guiding network; `None` is "no class".
        guiding: Option<Box<dyn VelocityNetwork>>,
    },
    /// A network on an NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(cuda::CudaEngine),
}

impl Engine {
    /// Reads the network to where the settings say.
    pub(crate) fn load(
        config: &PipelineConfig,
        network: &NetworkConfig,
        file: &DdtFile,
        guiding: Option<Box<dyn VelocityNetwork>>,
    ) -> Result<Self> {
        match config.device {
            Place::Cpu => {
                let network = file.load_network(Some(network), config.dtype.into(), &Device::Cpu)?;
                Ok(Self::Cpu { network, guiding })
            }
            #[cfg(feature = "cuda")]
            Place::Cuda(number) => {
                let number = number.unwrap_or_default();
                Ok(Self::Cuda(cuda::CudaEngine::open(config, network, file, number)?))
            }
            #[cfg(not(feature = "cuda"))]
            Place::Cuda(_) => no_gpus(),
        }
    }

    /// Noise to latents; the outer error is the device's, the inner one the network's.
    pub(crate) fn sample(
        &self,
        noise: &Tensor,
        labels: &[u32],
        options: &SampleOptions<'_>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Result<Sampled, ModelError>> {
        match self {
            Self::Cpu { network, guiding } => {
                let mut on_step = |report: &StepReport<'_>| on_step(Some(report));
                Ok(match guiding {
                    None => sample(&**network, noise, labels, options, &mut on_step),
                    Some(guiding) => {
                        sample_autoguided(&**network, &**guiding, noise, labels, options, &mut on_step)
                    }
                })
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => engine.sample(noise, labels, options, &mut || on_step(None)),
        }
    }

    /// The network, where it is on the CPU.
    pub(crate) fn network(&self) -> Option<&dyn VelocityNetwork> {
        match self {
            Self::Cpu { network, .. } => Some(&**network),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => None,
        }
    }
}

/// Checks that the device can do what the settings ask for.
pub(crate) fn check(config: &PipelineConfig) -> Result<()> {
    match config.device {
        Place::Cpu => Ok(()),
        #[cfg(feature = "cuda")]
        Place::Cuda(number) => cuda::check(config, number.unwrap_or_default()),
        #[cfg(not(feature = "cuda"))]
        Place::Cuda(_) => no_gpus(),
    }
}

/// Reads the decoder of a representation autoencoder, which runs on the CPU.
pub(crate) fn load_rae_decoder(
    cfg: &RaeDecoderConfig,
    file: &Checkpoint,
    statistics: RaeStatistics,
    config: &PipelineConfig,
) -> Result<Decoder> {
    let dtype = decoder_dtype(config);
    Ok(Box::new(RaeDecoder::load(cfg, file, Some(statistics), dtype, &Device::Cpu)?))
}

/// Dtype of the decoder: there is no fast one in f16.
fn decoder_dtype(config: &PipelineConfig) -> DType {
    if config.dtype == Dtype::Bf16 { DType::BF16 } else { DType::F32 }
}

/// Reads Stable Diffusion's decoder to where the settings say.
pub(crate) fn load_kl_decoder(cfg: &KlConfig, file: &Checkpoint, config: &PipelineConfig) -> Result<Decoder> {
    match config.device {
        Place::Cpu => Ok(Box::new(KlDecoder::load(cfg, file, decoder_dtype(config), &Device::Cpu)?)),
        #[cfg(feature = "cuda")]
        Place::Cuda(number) => cuda::load_kl_decoder(cfg, file, config, number.unwrap_or_default()),
        #[cfg(not(feature = "cuda"))]
        Place::Cuda(_) => no_gpus(),
    }
}

#[cfg(not(feature = "cuda"))]
fn no_gpus<T>() -> Result<T> {
    crate::error::invalid(
        "expected device cpu, the only one of this build; build with the feature cuda for GPUs",
    )
}
