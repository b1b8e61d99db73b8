//! What goes into a network's blocks: latents as tokens, time and class as a condition.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_blocks::{LabelEmbed, PatchEmbed, SitPatchEmbed, TimestepEmbed};

use crate::network_config::NetworkConfig;

/// Latents to tokens.
#[derive(Debug, Clone)]
pub(crate) enum TokenEmbed {
    /// A linear layer; positions are rotary, in the blocks.
    Improved(PatchEmbed),
    /// A convolution and fixed positions.
    Sit(SitPatchEmbed),
}

impl TokenEmbed {
    pub(crate) fn new(cfg: &NetworkConfig, vb: VarBuilder) -> Result<Self> {
        let (c, p, d) = (cfg.sizes.in_channels, cfg.sizes.patch_size, cfg.sizes.hidden_size);
        Ok(match cfg.grid_side.filter(|_| cfg.family.has_sit_blocks()) {
            Some(side) => Self::Sit(SitPatchEmbed::new((c, p), d, side, vb)?),
            None => Self::Improved(PatchEmbed::new(c, p, d, vb)?),
        })
    }

    /// # Shapes
    /// `xs: (B, C, H, W) -> (B, L, D)`.
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Improved(embed) => embed.forward(xs),
            Self::Sit(embed) => embed.forward(xs),
        }
    }
}

/// Time and class to the condition that modulates blocks.
#[derive(Debug, Clone)]
pub(crate) struct ConditionEmbed {
    t_embedder: TimestepEmbed,
    y_embedder: LabelEmbed,
    activation: Activation,
}

/// Where the SiLU of a condition stands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Activation {
    /// In the condition.
    Here,
    /// In each block's modulation.
    InBlocks,
}

impl Activation {
    pub(crate) fn of(cfg: &NetworkConfig) -> Self {
        if cfg.family.has_sit_blocks() { Self::InBlocks } else { Self::Here }
    }

    /// `silu(xs + addend)` or `xs + addend`, `(B, L, D)` and `(B, 1, D)`.
    pub(crate) fn add(self, xs: &Tensor, addend: &Tensor) -> Result<Tensor> {
        match self {
            Self::Here => ddt_kernels::add_silu(xs, addend),
            Self::InBlocks => xs.broadcast_add(addend),
        }
    }
}

impl ConditionEmbed {
    pub(crate) fn new(cfg: &NetworkConfig, vb: VarBuilder) -> Result<Self> {
        let (d, num_classes) = (cfg.sizes.hidden_size, cfg.sizes.num_classes);
        let t_embedder = vb.pp("t_embedder");
        Ok(Self {
            t_embedder: if cfg.family.has_sit_blocks() {
                TimestepEmbed::sit(d, t_embedder)?
            } else {
                TimestepEmbed::new(d, t_embedder)?
            },
            y_embedder: LabelEmbed::new(num_classes, d, vb.pp("y_embedder"))?,
            activation: Activation::of(cfg),
        })
    }

    /// `t_emb` and the condition, `t_emb + y_emb` with or without its SiLU, each `(B, 1, D)`.
    pub(crate) fn forward(&self, t: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
        if t.dims1()? != labels.dims1()? {
            bail!("expected as many times as labels, got {:?} and {:?}", t.dims(), labels.dims());
        }
        let t_emb = self.t_embedder.forward(&t.to_dtype(DType::F32)?)?.unsqueeze(1)?;
        let y_emb = self.y_embedder.forward(labels)?.unsqueeze(1)?;
        let condition = self.activation.add(&y_emb, &t_emb)?;
        Ok((t_emb, condition))
    }
}
