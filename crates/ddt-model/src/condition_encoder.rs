//! DDT's first half: what the latent means.

use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_blocks::AdaLnStack;

use crate::{
    config::DdtConfig,
    embed::{Activation, ConditionEmbed, TokenEmbed},
    network_block::{NetworkBlock, TokenGrid},
    network_config::{NetworkConfig, TokenMixer},
};

/// Turns (noisy latent, time, class) into the self-condition of Eq. 4:
///
/// ```text
/// c   = silu(t_emb + y_emb)
/// z_t = silu(t_emb + blocks(s_embedder(x_t), c))
/// ```
///
/// Differs from DiT: the SiLU is part of the condition, not of the blocks' modulation. On SiT's blocks
/// (DDT†) it stays where they have it, in every block of both halves, and neither `c` nor `z_t` has one.
#[derive(Debug, Clone)]
pub struct ConditionEncoder {
    cfg: NetworkConfig,
    condition: ConditionEmbed,
    s_embedder: TokenEmbed,
    blocks: Vec<NetworkBlock>,
    /// All blocks' modulations as one product, where nothing is trained.
    modulations: Option<AdaLnStack>,
}

impl ConditionEncoder {
    /// Parameters `t_embedder`, `y_embedder`, `s_embedder` and the first `num_encoder_blocks` `blocks`.
    pub fn new(cfg: &DdtConfig, vb: VarBuilder) -> Result<Self> {
        Self::from_config(&cfg.clone().into(), vb)
    }

    /// The same for any network of two halves.
    pub fn from_config(cfg: &NetworkConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let block = |i: usize| NetworkBlock::new(cfg, TokenMixer::Attention, vb.pp("blocks").pp(i));
        let mut blocks = (0..cfg.sizes.num_encoder_blocks).map(block).collect::<Result<Vec<_>>>()?;
        let modulations = NetworkBlock::joined_modulations(&mut blocks);
        Ok(Self {
            cfg: cfg.clone(),
            condition: ConditionEmbed::new(cfg, vb.clone())?,
            s_embedder: TokenEmbed::new(cfg, vb.pp("s_embedder"))?,
            blocks,
            modulations,
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
        let mut xs = self.s_embedder.forward(&x_t.to_dtype(t_emb.dtype())?)?; // (B, L, D)
        let grid = TokenGrid::of(x_t, &self.cfg, x_t.device())?;
        let mut features = xs.clone();
        let all = self.modulations.as_ref().map(|it| it.modulations(&condition)).transpose()?;
        for (i, block) in self.blocks.iter().enumerate() {
            xs = match all.as_ref().and_then(|it| it.get(i)) {
                Some(modulation) => block.forward(&xs, modulation, &grid)?,
                None => block.forward(&xs, &block.modulation(&condition)?, &grid)?,
            };
            if i + 1 == align_layer {
                features = xs.clone();
            }
        }
        Ok((Activation::of(&self.cfg).add(&xs, &t_emb)?, features))
    }
}
