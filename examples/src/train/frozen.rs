//! The frozen networks of a run: what makes latents, and what they are aligned with.

use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use ddt_adapters::{Autoencoder, DinoV2, DinoV2Config, KlAutoencoder, KlConfig, PixelSpace, TinyEncoder};
use ddt_files::{Checkpoint, sha256_file};
use ddt_train::{FeatureShape, Features};

use crate::{
    assets,
    train::settings::{AlignmentSettings, AutoencoderSettings},
};

/// An autoencoder's half that training needs, and what it is.
pub struct Encoder {
    network: EncoderNetwork,
    /// Its name, as files of weights say it.
    pub name: &'static str,
    /// Its name and the hash of its weights.
    pub identity: String,
    /// Whether each channel is normalised over the training images.
    pub normalised: bool,
}

enum EncoderNetwork {
    Kl(Box<KlAutoencoder>),
    Tiny(Box<TinyEncoder>),
    Pixels,
}

impl Encoder {
    /// Reads the weights.
    ///
    /// # Errors
    ///
    /// A file that is absent, damaged, or another autoencoder's.
    pub fn load(settings: &AutoencoderSettings) -> Result<Self> {
        Ok(match settings {
            AutoencoderSettings::SdVae { weights } => {
                let identity = format!("sd-vae sha256:{}", hash(weights, "autoencoder.weights")?);
                let file = Checkpoint::open(weights)?;
                let network = KlAutoencoder::load(&KlConfig::sd_vae_ft_ema(), &file, &Device::Cpu)
                    .with_context(|| format!("cannot read the autoencoder {}", weights.display()))?;
                let network = EncoderNetwork::Kl(Box::new(network));
                Self { network, name: "sd-vae-ft-ema", identity, normalised: false }
            }
            AutoencoderSettings::TinyFlux2 => Self {
                network: EncoderNetwork::Tiny(Box::new(assets::tiny_encoder()?)),
                name: "tiny-flux2",
                identity: format!("tiny-flux2 sha256:{}", assets::tiny_encoder_sha256()),
                normalised: true,
            },
            AutoencoderSettings::Pixels => Self {
                network: EncoderNetwork::Pixels,
                name: "pixels",
                identity: "pixels".to_owned(),
                normalised: false,
            },
        })
    }

    /// Channels, height and width of the latents of a square image.
    ///
    /// # Errors
    ///
    /// When the side is no multiple of what a latent stands for.
    pub fn latent_shape(&self, size: u32) -> Result<(usize, usize, usize)> {
        let (channels, factor) = match &self.network {
            EncoderNetwork::Kl(it) => (it.latent_channels(), it.downscale()),
            EncoderNetwork::Tiny(it) => (it.latent_channels(), it.downscale()),
            EncoderNetwork::Pixels => (PixelSpace.latent_channels(), 1),
        };
        let side = size as usize;
        if side == 0 || !side.is_multiple_of(factor) {
            bail!("images.size: expected a multiple of {factor} for this autoencoder, got {size}");
        }
        Ok((channels, side / factor, side / factor))
    }

    /// Whether it gives a distribution.
    #[must_use]
    pub fn has_posterior(&self) -> bool {
        matches!(self.network, EncoderNetwork::Kl(_))
    }

    /// Means and, where there are any, standard deviations, as the network is trained on them.
    ///
    /// # Shapes
    ///
    /// `pixels: (B, 3, f H, f W)` in `[-1, 1]`; `-> (B, C, H, W)` each.
    ///
    /// # Errors
    ///
    /// Any other shape.
    pub fn encode(&self, pixels: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        Ok(match &self.network {
            EncoderNetwork::Tiny(it) => (it.encode(pixels)?, None),
            EncoderNetwork::Pixels => (PixelSpace.encode(pixels)?, None),
            EncoderNetwork::Kl(it) => {
                let (posterior, scale) = (it.posterior(pixels)?, it.config().scaling_factor);
                let std = (posterior.logvar / 2.0)?.exp()?;
                ((posterior.mean * scale)?, Some((std * scale)?))
            }
        })
    }
}

/// The network whose tokens are aligned with.
pub struct Extractor {
    network: DinoV2,
    /// Its name and the hash of its weights.
    pub identity: String,
}

impl Extractor {
    /// Reads the weights.
    ///
    /// # Errors
    ///
    /// An unknown name; a file that is absent, damaged, or another network's.
    pub fn load(settings: &AlignmentSettings) -> Result<Self> {
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
        let identity = format!("dinov2-{name} sha256:{}", hash(&settings.weights, "alignment.weights")?);
        let file = Checkpoint::open(&settings.weights)?;
        let network = DinoV2::load(&cfg, &file, &Device::Cpu)
            .with_context(|| format!("cannot read DINOv2 from {}", settings.weights.display()))?;
        Ok(Self { network, identity })
    }

    /// Sizes of the features of a square image.
    ///
    /// # Errors
    ///
    /// When the resized side is no multiple of a patch.
    pub fn shape(&self, size: u32) -> Result<FeatureShape> {
        let cfg = self.network.config();
        let side = 224 * size as usize / 256;
        if side == 0 || !side.is_multiple_of(cfg.patch_size) {
            bail!(
                "images.size: {size} px become {side} px for DINOv2, expected a multiple of {}; 256 and 512 are",
                cfg.patch_size
            );
        }
        let patches = side / cfg.patch_size;
        Ok(FeatureShape { grid: (patches, patches), dim: cfg.hidden_size })
    }

    /// Tokens of images in `[-1, 1]`, `(B, 3, H, W)`.
    ///
    /// # Errors
    ///
    /// Any other shape.
    pub fn features(&self, pixels: &Tensor) -> Result<Features> {
        let features = self.network.features(&((pixels + 1.0)? / 2.0)?)?;
        Ok(Features { tokens: features.patch_tokens, grid: features.grid })
    }
}

fn hash(path: &Path, key: &str) -> Result<String> {
    anyhow::ensure!(path.exists(), "{key}: there is no file {}", path.display());
    Ok(sha256_file(path)?)
}
