//! The device that runs the network: the CPU, or a GPU in a build with CUDA: by programs for it, or through candle.

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
    decoding::{self, Decoder},
    error::Result,
};

/// Callback of an engine after every step, with the step's report where the latents are available.
pub(crate) type OnStep<'a> = dyn FnMut(Option<&StepReport<'_>>) -> ControlFlow<()> + 'a;

/// A network that is ready to run.
pub(crate) enum Engine {
    /// A network of candle's operations.
    Candle {
        /// The network.
        network: Box<dyn VelocityNetwork>,
        /// The guiding network; `None` is "no class".
        guiding: Option<Box<dyn VelocityNetwork>>,
        /// Where both are.
        device: Device,
    },
    /// A network as programs of an NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::CudaEngine>),
}

impl Engine {
    /// Reads the network to where the settings say.
    pub(crate) fn load(
        config: &PipelineConfig,
        network: &NetworkConfig,
        file: &DdtFile,
        guiding: Option<Box<dyn VelocityNetwork>>,
    ) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(number) = config.device.gpu()
            && (cuda::serves(config, network) || !cfg!(feature = "candle-cuda"))
        {
            return Ok(Self::Cuda(Box::new(cuda::CudaEngine::open(config, network, file, number)?)));
        }
        let device = device(config.device)?;
        let network = file.load_network(Some(network), config.dtype.into(), &device)?;
        Ok(Self::Candle { network, guiding, device })
    }

    /// Noise to latents, both on the CPU; the outer error is the device's, the inner one the network's.
    pub(crate) fn sample(
        &self,
        noise: &Tensor,
        labels: &[u32],
        options: &SampleOptions<'_>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Result<Sampled, ModelError>> {
        match self {
            Self::Candle { network, guiding, device } => {
                let noise = noise.to_device(device)?;
                // Who looks at the latents expects them on the CPU.
                let mut on_step = |report: &StepReport<'_>| on_step(device.is_cpu().then_some(report));
                let sampled = match guiding {
                    None => sample(&**network, &noise, labels, options, &mut on_step),
                    Some(guiding) => {
                        sample_autoguided(&**network, &**guiding, &noise, labels, options, &mut on_step)
                    }
                };
                Ok(match sampled {
                    Ok(it) => Ok(Sampled { latents: it.latents.to_device(&Device::Cpu)?, ..it }),
                    Err(error) => Err(error),
                })
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => engine.sample(noise, labels, options, &mut || on_step(None)),
        }
    }

    /// The network, where it is on the CPU.
    pub(crate) fn network(&self) -> Option<&dyn VelocityNetwork> {
        match self {
            Self::Candle { network, device, .. } => device.is_cpu().then_some(&**network),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => None,
        }
    }
}

/// candle's device of a place.
pub(crate) fn device(place: Place) -> Result<Device> {
    match place {
        Place::Cpu => Ok(Device::Cpu),
        #[cfg(feature = "candle-cuda")]
        Place::Cuda(number) => crate::gpu_device::open(number.unwrap_or_default()),
        #[cfg(not(feature = "candle-cuda"))]
        Place::Cuda(_) => crate::error::invalid(
            "expected device cpu, the only one of this build; build with the feature cuda or candle-cuda for GPUs",
        ),
    }
}

/// Checks that the device can do what the settings ask for.
pub(crate) fn check(config: &PipelineConfig) -> Result<()> {
    #[cfg(all(feature = "cuda", not(feature = "candle-cuda")))]
    if let Some(number) = config.device.gpu() {
        return cuda::check(config, number);
    }
    device(config.device).map(drop)
}

/// Reads the decoder of a representation autoencoder.
pub(crate) fn load_rae_decoder(
    cfg: &RaeDecoderConfig,
    file: &Checkpoint,
    statistics: RaeStatistics,
    config: &PipelineConfig,
) -> Result<Decoder> {
    let device = decoder_device(config)?;
    let decoder = RaeDecoder::load(cfg, file, Some(statistics), decoder_dtype(config), &device)?;
    Ok(decoding::on(device, decoder))
}

/// Dtype of the decoder: there is no fast one in f16.
fn decoder_dtype(config: &PipelineConfig) -> DType {
    if config.dtype == Dtype::Bf16 { DType::BF16 } else { DType::F32 }
}

/// Where decoders run that have no programs: on the CPU, unless candle has GPUs.
pub(crate) fn decoder_device(config: &PipelineConfig) -> Result<Device> {
    if cfg!(feature = "candle-cuda") { device(config.device) } else { Ok(Device::Cpu) }
}

/// Reads Stable Diffusion's decoder to where the settings say.
pub(crate) fn load_kl_decoder(cfg: &KlConfig, file: &Checkpoint, config: &PipelineConfig) -> Result<Decoder> {
    #[cfg(feature = "cuda")]
    if let Some(number) = config.device.gpu()
        && (cuda::decodes(config) || !cfg!(feature = "candle-cuda"))
    {
        return cuda::load_kl_decoder(cfg, file, config, number);
    }
    let device = device(config.device)?;
    let decoder = KlDecoder::load(cfg, file, decoder_dtype(config), &device)?;
    Ok(decoding::on(device, decoder))
}
