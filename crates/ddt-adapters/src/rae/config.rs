//! Sizes of the decoder, given or read off its tensors.

use candle_core::{Result, bail};
use ddt_files::TensorSource;
use serde::{Deserialize, Serialize};

use crate::load::{LoadError, check_sizes};

/// Epsilon of every norm of the decoder.
pub(super) const NORM_EPS: f64 = 1e-12;

/// Sizes of the decoder of a representation autoencoder.
///
/// The presets are the published ones: latents of DINOv2-B on a grid of 16 x 16, patches of 16 pixels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaeDecoderConfig {
    /// Channels of the latents: the encoder's width.
    pub latent_channels: usize,
    /// Positions along a side of the square of latents that it was trained on.
    pub grid: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Number of transformer blocks.
    pub num_blocks: usize,
    /// Attention heads; they divide `hidden_size`.
    pub num_heads: usize,
    /// Width of the feed-forward layer.
    pub mlp_width: usize,
    /// Pixels along a side of a patch.
    pub patch_size: usize,
}

impl RaeDecoderConfig {
    /// ViT-B.
    pub fn vit_b() -> Self {
        Self {
            latent_channels: 768,
            grid: 16,
            hidden_size: 768,
            num_blocks: 12,
            num_heads: 12,
            mlp_width: 3072,
            patch_size: 16,
        }
    }

    /// ViT-L.
    pub fn vit_l() -> Self {
        Self { hidden_size: 1024, num_blocks: 24, num_heads: 16, mlp_width: 4096, ..Self::vit_b() }
    }

    /// ViT-XL, which the published networks are decoded with.
    pub fn vit_xl() -> Self {
        Self { hidden_size: 1152, num_blocks: 28, ..Self::vit_l() }
    }

    /// The same for another grid of latents: 32 for images of 512 px.
    pub fn with_grid(self, grid: usize) -> Self {
        Self { grid, ..self }
    }

    /// The sizes of the decoder in `source`. No tensor tells the number of heads; `None` is that of the published
    /// decoder of this width.
    ///
    /// # Errors
    /// [`LoadError::Unrecognised`] for tensors that are no decoder's, or a width that no published decoder has.
    pub fn of(
        source: &(impl TensorSource + ?Sized),
        num_heads: Option<usize>,
    ) -> std::result::Result<Self, LoadError> {
        let shape = |name: &str| source.info(name).map(|it| it.shape).unwrap_or_default();
        let unrecognised = |expected| LoadError::unrecognised("decoder of an RAE", expected, source);
        let [hidden_size, latent_channels] = shape("decoder_embed.weight")[..] else {
            return Err(unrecognised("decoder_embed.weight of 2 dimensions"));
        };
        let tokens = match shape("decoder_pos_embed")[..] {
            [1, tokens, width] if width == hidden_size => tokens,
            _ => return Err(unrecognised("decoder_pos_embed (1, 1 + n n, W)")),
        };
        let [outputs] = shape("decoder_pred.bias")[..] else {
            return Err(unrecognised("decoder_pred.bias (3 p p)"));
        };
        let block = |i: usize| shape(&format!("decoder_layers.{i}.intermediate.dense.bias"));
        let [mlp_width] = block(0)[..] else {
            return Err(unrecognised("decoder_layers.0.intermediate.dense.bias of 1 dimension"));
        };
        let (grid, patch_size) = (tokens.saturating_sub(1).isqrt(), (outputs / 3).isqrt());
        let presets = [Self::vit_b(), Self::vit_l(), Self::vit_xl()];
        let published = || presets.iter().find(|it| it.hidden_size == hidden_size).map(|it| it.num_heads);
        let Some(num_heads) = num_heads.or_else(published) else {
            return Err(unrecognised("decoder_embed.weight of width 768, 1024 or 1152"));
        };
        let num_blocks = (0..).take_while(|i| !block(*i).is_empty()).count();
        Ok(Self { latent_channels, grid, hidden_size, num_blocks, num_heads, mlp_width, patch_size })
    }

    /// Refuses sizes that no transformer has.
    ///
    /// # Errors
    /// A size of zero or beyond 65536, and heads that do not divide the width.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("latent_channels", self.latent_channels),
            ("grid", self.grid),
            ("hidden_size", self.hidden_size),
            ("num_blocks", self.num_blocks),
            ("num_heads", self.num_heads),
            ("mlp_width", self.mlp_width),
            ("patch_size", self.patch_size),
        ];
        check_sizes(sizes)?;
        if !self.hidden_size.is_multiple_of(self.num_heads) {
            bail!("expected num_heads to divide hidden_size {}, got {}", self.hidden_size, self.num_heads);
        }
        Ok(())
    }
}
