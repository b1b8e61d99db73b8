//! Pixels to normalised features of DINOv2.

use candle_core::{DType, Device, Result, Tensor, bail};
use ddt_files::TensorSource;
use serde::{Deserialize, Serialize};

use super::statistics::RaeStatistics;
use crate::autoencoder::{Encode, LatentSpace, check_pixels};
use crate::dinov2::{DinoV2, DinoV2Config, normalised};
use crate::load::{LoadError, check_sizes};

/// The encoder of a representation autoencoder; usable without the decoder.
///
/// ```text
/// f = norm(dinov2((resize(x) - mean) / std)),   z = (f - mean_f) / std_f
/// ```
///
/// The last norm has no weight and bias; those of the file are dropped, as are class token and registers.
/// Multiplies in the type of its weights, sums in `f32`; takes and gives `f32`, a few images at a time.
#[derive(Debug, Clone)]
pub struct RaeEncoder {
    network: DinoV2,
    statistics: Option<RaeStatistics>,
    cfg: RaeEncoderConfig,
}

impl RaeEncoder {
    /// Builds the encoder in `dtype` from a file of DINOv2, under its own names or Hugging Face's; without statistics
    /// latents are the features.
    ///
    /// # Errors
    /// A configuration that [`RaeEncoderConfig::validate`] refuses; statistics of another size;
    /// [`FileError::Mismatch`](ddt_files::FileError::Mismatch) with every missing, unexpected and misshapen name.
    pub fn load(
        cfg: &RaeEncoderConfig,
        source: &(impl TensorSource + Sync + ?Sized),
        statistics: Option<RaeStatistics>,
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        cfg.validate()?;
        if let Some(it) = &statistics {
            it.check(cfg.dino.hidden_size, cfg.grid())?;
        }
        let network = DinoV2::load(&cfg.dino, source, dtype, device)?.with_plain_norm()?;
        Ok(Self { network, statistics, cfg: cfg.clone() })
    }

    /// The configuration that it was built with.
    pub fn config(&self) -> &RaeEncoderConfig {
        &self.cfg
    }

    /// The network, its last norm without weight and bias.
    pub fn network(&self) -> &DinoV2 {
        &self.network
    }

    /// Normalised images as the network takes them, of `m = input_size` pixels a side.
    ///
    /// ```text
    /// y = (resize(x) - mean) / std
    /// ```
    ///
    /// Bicubic with a = -0.75, without antialiasing, unless they have that size already.
    ///
    /// # Shapes
    /// `pixels: (B, 3, H, W)` in `[0, 1] -> (B, 3, m, m)`, `f32`
    ///
    /// # Errors
    /// Any other shape.
    pub fn preprocess(&self, pixels: &Tensor) -> Result<Tensor> {
        normalised(pixels, (self.cfg.input_size, self.cfg.input_size))
    }

    /// Latents of pixels of any size in `[0, 1]`, which are resized first.
    ///
    /// # Shapes
    /// `(B, 3, H, W) -> (B, C, n, n)`
    ///
    /// # Errors
    /// Any other shape.
    pub fn encode_raw(&self, pixels: &Tensor) -> Result<Tensor> {
        self.latents(&self.network.forward(&self.preprocess(pixels)?)?.patch_tokens)
    }

    /// Latents of patch tokens that [`network`](Self::network) computed.
    ///
    /// # Shapes
    /// `(B, n n, C) -> (B, C, n, n)`
    ///
    /// # Errors
    /// Any other shape.
    pub fn latents(&self, patch_tokens: &Tensor) -> Result<Tensor> {
        let n = self.cfg.grid();
        let features =
            patch_tokens.transpose(1, 2)?.contiguous()?.reshape(((), self.cfg.dino.hidden_size, n, n))?;
        match &self.statistics {
            Some(it) => it.normalise(&features),
            None => Ok(features),
        }
    }
}

impl LatentSpace for RaeEncoder {
    fn latent_channels(&self) -> usize {
        self.cfg.dino.hidden_size
    }

    fn downscale(&self) -> usize {
        self.cfg.downscale
    }
}

impl Encode for RaeEncoder {
    /// Takes images of one size, `n` times the downscale per side; [`RaeEncoder::encode_raw`] takes any.
    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        let side = self.cfg.grid() * self.cfg.downscale;
        check_pixels(pixels, side)?;
        if pixels.dims()[2..] != [side, side] {
            bail!("expected pixels (B, 3, {side}, {side}), got {:?}", pixels.shape());
        }
        self.encode_raw(&pixels.to_dtype(DType::F32)?.affine(0.5, 0.5)?)
    }
}

/// Sizes of the encoder of a representation autoencoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaeEncoderConfig {
    /// The network.
    pub dino: DinoV2Config,
    /// Pixels along a side of the images that it sees, a multiple of its patch.
    pub input_size: usize,
    /// Pixels of an image along a side of one latent position: the patch of the decoder.
    pub downscale: usize,
}

impl RaeEncoderConfig {
    /// DINOv2-B with registers for images of 256 px, which it sees at 224 px: 16 x 16 latents.
    pub fn dinov2_b_256() -> Self {
        Self { dino: DinoV2Config::vit_b().with_registers(), input_size: 224, downscale: 16 }
    }

    /// The same for images of 512 px, which it sees at 448 px: 32 x 32 latents.
    pub fn dinov2_b_512() -> Self {
        Self { input_size: 448, ..Self::dinov2_b_256() }
    }

    /// Latent positions along a side.
    pub fn grid(&self) -> usize {
        self.input_size / self.dino.patch_size.max(1)
    }

    /// Refuses sizes that no encoder has.
    ///
    /// # Errors
    /// Those of [`DinoV2Config::validate`], images that are not whole patches, and no downscale.
    pub fn validate(&self) -> Result<()> {
        self.dino.validate()?;
        check_sizes([("input_size", self.input_size), ("downscale", self.downscale)])?;
        let (side, patch) = (self.input_size, self.dino.patch_size);
        if !side.is_multiple_of(patch) {
            bail!("input_size: expected a multiple of {patch}, got {side}");
        }
        Ok(())
    }
}
