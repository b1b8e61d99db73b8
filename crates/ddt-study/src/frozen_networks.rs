//! The frozen networks around a training run, by the names that its settings have for them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use ddt::{
    adapters::{
        Decode, DinoV2, DinoV2Config, Encode, KlConfig, KlDecoder, KlEncoder, LatentSpace, PixelSpace,
        RaeDecoder, RaeDecoderConfig, RaeEncoder, RaeEncoderConfig, RaeStatistics, TinyDecoder, TinyEncoder,
    },
    decode_latents,
    files::{Checkpoint, sha256},
    picture::Rgb8,
    sha256_of,
};
use ddt_train::{
    AlignmentSettings, AutoencoderSettings, FeatureExtractor, FeatureShape, Frozen, LatentEncoder, Samples,
    Settings,
};

/// Side of the images that DINOv2 sees, for images of 256 pixels.
const DINOV2_SIDE: usize = 224;

/// Loads the networks that [`ddt_train::run`] needs beside its settings: the encoder of the autoencoder, and DINOv2
/// where there is alignment.
///
/// ```no_run
/// use std::{ops::ControlFlow, path::Path, sync::Arc};
///
/// use ddt_train::{Alone, FileSystem};
///
/// let settings = ddt_train::Settings::read(Path::new("configs/cifar10.toml"))?;
/// let frozen = ddt_study::frozen_networks(&settings)?;
/// let out = Path::new("weights.safetensors");
/// let (alone, disk) = (Arc::new(Alone), FileSystem::default());
/// ddt_train::run(alone, &disk, &settings, &frozen, out, &mut |_| ControlFlow::Continue(()))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A file that is absent, damaged or holds another network; an unknown model; images of a size that it cannot take.
pub fn frozen_networks(settings: &Settings) -> Result<Frozen<'static>> {
    let features = |it| features(it, settings.images.size as usize);
    let features = settings.alignment.as_ref().map(features).transpose()?;
    Ok(Frozen { encoder: encoder(&settings.autoencoder, settings.images.size)?, features })
}

/// Decodes the samples of a training run, which are latents, to images.
///
/// # Errors
/// Weights that cannot be read; latents that are NaN or infinite.
pub fn decode_samples(autoencoder: &AutoencoderSettings, samples: &Samples) -> Result<Vec<Rgb8>> {
    let decoder: Box<dyn Decode> = match autoencoder {
        AutoencoderSettings::SdVae { weights } => {
            let file = Checkpoint::open(weights)?;
            Box::new(KlDecoder::load(&KlConfig::sd_vae_ft_ema(), &file, DType::F32, &Device::Cpu)?)
        }
        AutoencoderSettings::Rae { statistics, decoder, .. } => {
            let decoder = decoder.as_ref().context("autoencoder.decoder: expected its weights, got none")?;
            let statistics = RaeStatistics::load(&Checkpoint::open(statistics)?, &Device::Cpu)?;
            let file = Checkpoint::open(decoder)?;
            let cfg = RaeDecoderConfig::of(&file, None)?;
            Box::new(RaeDecoder::load(&cfg, &file, Some(statistics), DType::F32, &Device::Cpu)?)
        }
        AutoencoderSettings::TinyFlux2 => {
            let file = Checkpoint::from_bytes(ddt_demo::TINY_DECODER, "the bundled decoder")?;
            Box::new(TinyDecoder::load(&file, DType::F32, &Device::Cpu)?)
        }
        AutoencoderSettings::Pixels => Box::new(PixelSpace),
    };
    let mut images = Vec::new();
    // A class at once: the decoder's memory is bounded.
    for latents in samples.latents.chunk(samples.classes.len().max(1), 0)? {
        images.extend(decode_latents(&*decoder, &samples.info, &latents)?);
    }
    Ok(images)
}

/// The encoder for images of a size.
fn encoder(settings: &AutoencoderSettings, size: u32) -> Result<LatentEncoder<'static>> {
    Ok(match settings {
        AutoencoderSettings::Rae { weights, statistics, .. } => {
            let cfg = match size {
                256 => RaeEncoderConfig::dinov2_b_256(),
                512 => RaeEncoderConfig::dinov2_b_512(),
                _ => bail!("images.size: expected 256 or 512 with a representation autoencoder, got {size}"),
            };
            let (hash, own) =
                (hash(weights, "autoencoder.weights")?, hash(statistics, "autoencoder.statistics")?);
            let statistics = RaeStatistics::load(&Checkpoint::open(statistics)?, &Device::Cpu)
                .with_context(|| format!("cannot read {}", statistics.display()))?;
            let file = Checkpoint::open(weights)?;
            let network = RaeEncoder::load(&cfg, &file, Some(statistics), DType::F32, &Device::Cpu)
                .with_context(|| format!("cannot read DINOv2 from {}", weights.display()))?;
            LatentEncoder {
                name: format!("rae-dinov2-b-{size}"),
                identity: format!("rae sha256:{hash} statistics sha256:{own}"),
                channels: network.latent_channels(),
                downscale: network.downscale(),
                posterior: false,
                normalise: false,
                encode: Box::new(move |pixels| Ok((network.encode(pixels)?, None))),
            }
        }
        AutoencoderSettings::Pixels => LatentEncoder::pixels(),
        AutoencoderSettings::TinyFlux2 => {
            let bytes = ddt_demo::TINY_ENCODER;
            let file = Checkpoint::from_bytes(bytes, "the bundled encoder")?;
            let network = TinyEncoder::load(&file, DType::F32, &Device::Cpu)?;
            LatentEncoder {
                name: "tiny-flux2".to_owned(),
                identity: format!("tiny-flux2 sha256:{}", sha256(bytes)),
                channels: network.latent_channels(),
                downscale: network.downscale(),
                posterior: false,
                normalise: true,
                encode: Box::new(move |pixels| Ok((network.encode(pixels)?, None))),
            }
        }
        AutoencoderSettings::SdVae { weights } => {
            let identity = format!("sd-vae sha256:{}", hash(weights, "autoencoder.weights")?);
            let file = Checkpoint::open(weights)?;
            let network = KlEncoder::load(&KlConfig::sd_vae_ft_ema(), &file, DType::F32, &Device::Cpu)
                .with_context(|| format!("cannot read the autoencoder {}", weights.display()))?;
            LatentEncoder {
                name: "sd-vae-ft-ema".to_owned(),
                identity,
                channels: network.latent_channels(),
                downscale: network.downscale(),
                posterior: true,
                normalise: false,
                encode: Box::new(move |pixels| {
                    let (posterior, scale) = (network.posterior(pixels)?, network.config().scaling_factor);
                    let std = (posterior.logvar / 2.0)?.exp()?;
                    Ok(((posterior.mean * scale)?, Some((std * scale)?)))
                }),
            }
        }
    })
}

/// DINOv2 on images of a size, resized to 224 for 256.
fn features(settings: &AlignmentSettings, size: usize) -> Result<FeatureExtractor<'static>> {
    let name = settings.model.as_str();
    let cfg = match name.strip_suffix("-reg").unwrap_or(name) {
        "vit-s" => DinoV2Config::vit_s(),
        "vit-b" => DinoV2Config::vit_b(),
        "vit-l" => DinoV2Config::vit_l(),
        "vit-g" => DinoV2Config::vit_g(),
        _ => {
            bail!(
                "alignment.model: expected vit-s, vit-b, vit-l or vit-g, with -reg for registers, got {name:?}"
            )
        }
    };
    let cfg = if name.ends_with("-reg") { cfg.with_registers() } else { cfg };
    let (side, patch) = (DINOV2_SIDE * size / 256, cfg.patch_size);
    ensure!(
        side > 0 && side.is_multiple_of(patch),
        "images.size: {size} px become {side} px for DINOv2, expected a multiple of {patch}; 256 and 512 are"
    );
    let identity = format!("dinov2-{name} sha256:{}", hash(&settings.weights, "alignment.weights")?);
    let file = Checkpoint::open(&settings.weights)?;
    let network = DinoV2::load(&cfg, &file, DType::F32, &Device::Cpu)
        .with_context(|| format!("cannot read DINOv2 from {}", settings.weights.display()))?;
    let extract = move |pixels: &Tensor| Ok(network.features(&((pixels + 1.0)? / 2.0)?)?.patch_tokens);
    let shape = FeatureShape { grid: (side / patch, side / patch), dim: cfg.hidden_size };
    Ok(FeatureExtractor { identity, shape, extract: Box::new(extract) })
}

fn hash(path: &Path, key: &str) -> Result<String> {
    ensure!(path.exists(), "{key}: there is no file {}", path.display());
    Ok(sha256_of(path)?)
}
