//! The frozen networks of a run: autoencoder and DINOv2, loaded as settings name them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use ddt_adapters::{
    Decode, DinoV2, DinoV2Config, Encode, KlConfig, KlDecoder, KlEncoder, LatentSpace, PixelSpace,
};
use ddt_files::{Checkpoint, sha256_file};
use ddt_model::LatentInfo;
use ddt_train::{
    AlignmentSettings, AutoencoderSettings, FeatureExtractor, FeatureShape, Frozen, LatentEncoder, Settings,
};

use crate::{assets, normalized::Normalized};

/// Loads the networks.
///
/// # Errors
///
/// A file that is absent, damaged or holds another network; an unknown model; an image size that it cannot take.
pub fn load(settings: &Settings) -> Result<Frozen<'static>> {
    let features = |it| features(it, settings.images.size);
    Ok(Frozen {
        encoder: encoder(&settings.autoencoder)?,
        features: settings.alignment.as_ref().map(features).transpose()?,
    })
}

/// The encoder of an autoencoder.
fn encoder(settings: &AutoencoderSettings) -> Result<LatentEncoder<'static>> {
    Ok(match settings {
        AutoencoderSettings::Pixels => LatentEncoder::pixels(),
        AutoencoderSettings::TinyFlux2 => {
            let network = assets::tiny_encoder()?;
            LatentEncoder {
                name: "tiny-flux2".to_owned(),
                identity: format!("tiny-flux2 sha256:{}", assets::tiny_encoder_sha256()),
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

/// The decoder of an autoencoder, for latents normalised as `info` states.
///
/// # Errors
///
/// Weights that cannot be read.
pub fn decoder(settings: &AutoencoderSettings, info: &LatentInfo) -> Result<Box<dyn Decode>> {
    let inner: Box<dyn Decode> = match settings {
        AutoencoderSettings::SdVae { weights } => {
            let file = Checkpoint::open(weights)?;
            Box::new(KlDecoder::load(&KlConfig::sd_vae_ft_ema(), &file, DType::F32, &Device::Cpu)?)
        }
        AutoencoderSettings::TinyFlux2 => Box::new(assets::tiny_decoder()?),
        AutoencoderSettings::Pixels => Box::new(PixelSpace),
    };
    Ok(Box::new(Normalized::new(inner, info, &Device::Cpu)?))
}

/// DINOv2 on images of a size, resized to 224 for 256.
fn features(settings: &AlignmentSettings, size: u32) -> Result<FeatureExtractor<'static>> {
    let name = settings.model.as_str();
    let cfg = match name.strip_suffix("-reg").unwrap_or(name) {
        "vit-s" => DinoV2Config::vit_s(),
        "vit-b" => DinoV2Config::vit_b(),
        "vit-l" => DinoV2Config::vit_l(),
        "vit-g" => DinoV2Config::vit_g(),
        _ => bail!(
            "alignment.model: expected vit-s, vit-b, vit-l or vit-g, with -reg for registers, got {name:?}"
        ),
    };
    let cfg = if name.ends_with("-reg") { cfg.with_registers() } else { cfg };
    let (side, patch) = (224 * size as usize / 256, cfg.patch_size);
    ensure!(
        side > 0 && side.is_multiple_of(patch),
        "images.size: {size} px become {side} px for DINOv2, expected a multiple of {patch}; 256 and 512 are"
    );
    let identity = format!("dinov2-{name} sha256:{}", hash(&settings.weights, "alignment.weights")?);
    let file = Checkpoint::open(&settings.weights)?;
    let network = DinoV2::load(&cfg, &file, DType::F32, &Device::Cpu)
        .with_context(|| format!("cannot read DINOv2 from {}", settings.weights.display()))?;
    let extract =
        move |pixels: &candle_core::Tensor| Ok(network.features(&((pixels + 1.0)? / 2.0)?)?.patch_tokens);
    let shape = FeatureShape { grid: (side / patch, side / patch), dim: cfg.hidden_size };
    Ok(FeatureExtractor { identity, shape, extract: Box::new(extract) })
}

fn hash(path: &Path, key: &str) -> Result<String> {
    ensure!(path.exists(), "{key}: there is no file {}", path.display());
    Ok(sha256_file(path)?)
}
