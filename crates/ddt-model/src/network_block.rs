//! The kinds of blocks a network may be made of.

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_blocks::{AdaLnStack, AxialRope2d, Block, MixerBlock, Modulation, RopeTable, SitBlock};

use crate::network_config::{NetworkConfig, TokenMixer};

/// One block, of whichever kind.
#[derive(Debug, Clone)]
pub(crate) enum NetworkBlock {
    /// DDT's.
    Improved(Block),
    /// DDT's with another token mixer.
    Mixed(MixerBlock),
    /// SiT's.
    Sit(SitBlock),
}

/// Where the tokens of one call lie.
#[derive(Debug)]
pub(crate) struct TokenGrid {
    size: (usize, usize),
    rope: RopeTable,
}

impl TokenGrid {
    /// The tokens of latents `x_t: (B, C, H, W)`.
    pub(crate) fn of(x_t: &Tensor, cfg: &NetworkConfig, device: &Device) -> Result<Self> {
        let (_, _, h, w) = x_t.dims4()?;
        let size = (h / cfg.sizes.patch_size, w / cfg.sizes.patch_size);
        Ok(Self { size, rope: AxialRope2d::new(cfg.sizes.head_dim())?.table(size.0, size.1, device)? })
    }
}

impl NetworkBlock {
    /// A block whose tokens meet by `mixer`, which families of SiT's blocks do not look at.
    pub(crate) fn new(cfg: &NetworkConfig, mixer: TokenMixer, vb: VarBuilder) -> Result<Self> {
        let (d, heads) = (cfg.sizes.hidden_size, cfg.sizes.num_heads);
        if cfg.family.has_sit_blocks() {
            return Ok(Self::Sit(SitBlock::new(d, heads, vb)?));
        }
        Ok(match mixer {
            TokenMixer::Attention => Self::Improved(Block::new(d, heads, vb)?),
            TokenMixer::Conv3x3 => Self::Mixed(MixerBlock::convolution(d, vb)?),
            TokenMixer::Mlp => Self::Mixed(MixerBlock::mlp(d, vb)?),
        })
    }

    /// The modulations of all blocks as one product, where they are DDT's and none is trained.
    pub(crate) fn joined_modulations(blocks: &mut [Self]) -> Option<AdaLnStack> {
        let improved = blocks.iter_mut().map(|it| match it {
            Self::Improved(block) => Some(block),
            Self::Mixed(_) | Self::Sit(_) => None,
        });
        AdaLnStack::join(improved.collect::<Option<Vec<_>>>()?.into_iter())
    }

    /// What a condition, `(B, 1 or L, D)`, makes of this block.
    pub(crate) fn modulation(&self, condition: &Tensor) -> Result<Modulation> {
        match self {
            Self::Improved(block) => block.modulation(condition),
            Self::Mixed(block) => block.modulation(condition),
            Self::Sit(block) => block.modulation(condition),
        }
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`.
    pub(crate) fn forward(&self, xs: &Tensor, modulation: &Modulation, grid: &TokenGrid) -> Result<Tensor> {
        match self {
            Self::Improved(block) => block.forward(xs, modulation, &grid.rope),
            Self::Mixed(block) => block.forward(xs, modulation, grid.size),
            Self::Sit(block) => block.forward(xs, modulation),
        }
    }
}
