//! DDT's first half: what the latent means.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_blocks::{AxialRope2d, Block, LabelEmbed, PatchEmbed, TimestepEmbed};

use crate::config::DdtConfig;

/// Turns (noisy latent, time, class) into the self-condition of Eq. 4:
///
/// ```text
/// c   = silu(t_emb + y_emb)
/// z_t = silu(t_emb + blocks(s_embedder(x_t), c))
/// ```
///
/// Differs from DiT: the SiLU is part of the condition, not of the blocks' modulation.
#[derive(Debug, Clone)]
pub struct ConditionEncoder {
    condition: ConditionEmbed,
    s_embedder: PatchEmbed,
    blocks: Vec<Block>,
    rope: AxialRope2d,
    patch_size: usize,
}

impl ConditionEncoder {
    /// Parameters `t_embedder`, `y_embedder`, `s_embedder` and the first `num_encoder_blocks` `blocks`.
    pub fn new(cfg: &DdtConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let block = |i: usize| Block::new(cfg.hidden_size, cfg.num_heads, vb.pp("blocks").pp(i));
        Ok(Self {
            condition: ConditionEmbed::new(cfg, vb.clone())?,
            s_embedder: PatchEmbed::new(
                cfg.in_channels,
                cfg.patch_size,
                cfg.hidden_size,
                vb.pp("s_embedder"),
            )?,
            blocks: (0..cfg.num_encoder_blocks).map(block).collect::<Result<_>>()?,
            rope: AxialRope2d::new(cfg.head_dim())?,
            patch_size: cfg.patch_size,
        })
    }

    /// The self-condition `z_t`.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W)`; `t: (B)` f32 in [0, 1]; `labels: (B)` u32 in `0..=num_classes`;
    /// `-> (B, L, D)` in the weights' dtype.
    ///
    /// # Errors
    /// On any other shape, and on the CPU for a label outside the table.
    pub fn forward(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(self.forward_with_features(x_t, t, labels, 0)?.0)
    }

    /// The self-condition, and the output of encoder block `align_layer` (from 1; 0 is the embedded
    /// latent), before any activation, `(B, L, D)`: what representation alignment projects.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and when there is no such block.
    pub fn forward_with_features(
        &self,
        x_t: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        align_layer: usize,
    ) -> Result<(Tensor, Tensor)> {
        if align_layer > self.blocks.len() {
            bail!(
                "expected an align_layer of at most {} encoder blocks, got {align_layer}",
                self.blocks.len()
            );
        }
        let (t_emb, condition) = self.condition.forward(t, labels)?;
        let (_, _, h, w) = x_t.dims4()?;
        let mut xs = self.s_embedder.forward(&x_t.to_dtype(t_emb.dtype())?)?; // (B, L, D)
        let rope = self.rope.table(h / self.patch_size, w / self.patch_size, x_t.device())?;
        let mut features = xs.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            xs = block.forward(&xs, &block.modulation(&condition)?, &rope)?;
            if i + 1 == align_layer {
                features = xs.clone();
            }
        }
        Ok((ddt_kernels::add_silu(&xs, &t_emb)?, features))
    }
}

/// Time and class to the condition that modulates blocks.
#[derive(Debug, Clone)]
pub(crate) struct ConditionEmbed {
    t_embedder: TimestepEmbed,
    y_embedder: LabelEmbed,
}

impl ConditionEmbed {
    pub(crate) fn new(cfg: &DdtConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            t_embedder: TimestepEmbed::new(cfg.hidden_size, vb.pp("t_embedder"))?,
            y_embedder: LabelEmbed::new(cfg.num_classes, cfg.hidden_size, vb.pp("y_embedder"))?,
        })
    }

    /// `t_emb` and `c = silu(t_emb + y_emb)`, each `(B, 1, D)`.
    pub(crate) fn forward(&self, t: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
        if t.dims1()? != labels.dims1()? {
            bail!("expected as many times as labels, got {:?} and {:?}", t.dims(), labels.dims());
        }
        let t_emb = self.t_embedder.forward(&t.to_dtype(DType::F32)?)?.unsqueeze(1)?;
        let y_emb = self.y_embedder.forward(labels)?.unsqueeze(1)?;
        let condition = ddt_kernels::add_silu(&y_emb, &t_emb)?;
        Ok((t_emb, condition))
    }
}
