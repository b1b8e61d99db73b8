//! DDT's second half: where the latent goes.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_blocks::{AxialRope2d, Block, FinalLayer, Modulation, PatchEmbed, unpatchify};

use crate::config::DdtConfig;

/// Turns (noisy latent, condition) into a velocity (Eq. 5 and Sec. 3.2).
///
/// The condition is a self-condition, one vector a token, in DDT; one vector an image works as well,
/// and makes the decoder alone the paper's Improved-SiT.
#[derive(Debug, Clone)]
pub struct VelocityDecoder {
    x_embedder: PatchEmbed,
    blocks: Vec<Block>,
    final_layer: FinalLayer,
    rope: AxialRope2d,
    patch_size: usize,
}

/// All that a condition means to a [`VelocityDecoder`]: every block's modulation and the final layer's.
///
/// Depends on the condition alone, so it may be kept for as long as the condition is.
#[derive(Debug, Clone)]
pub struct DecoderModulations {
    blocks: Vec<Modulation>,
    final_shift_scale: Tensor,
}

impl DecoderModulations {
    /// Images it is for.
    pub fn rows(&self) -> Result<usize> {
        self.final_shift_scale.dim(0)
    }

    /// The first `rows` images' share.
    pub fn narrow_rows(&self, rows: usize) -> Result<Self> {
        Ok(Self {
            blocks: self.blocks.iter().map(|it| it.narrow_rows(rows)).collect::<Result<_>>()?,
            final_shift_scale: self.final_shift_scale.narrow(0, 0, rows)?,
        })
    }
}

impl VelocityDecoder {
    /// Parameters `x_embedder`, the last `num_decoder_blocks` `blocks`, and `final_layer`.
    pub fn new(cfg: &DdtConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let block = |i: usize| Block::new(cfg.hidden_size, cfg.num_heads, vb.pp("blocks").pp(i));
        let blocks = cfg.num_encoder_blocks..cfg.num_encoder_blocks + cfg.num_decoder_blocks;
        Ok(Self {
            x_embedder: PatchEmbed::new(
                cfg.in_channels,
                cfg.patch_size,
                cfg.hidden_size,
                vb.pp("x_embedder"),
            )?,
            blocks: blocks.map(block).collect::<Result<_>>()?,
            final_layer: FinalLayer::new(cfg.hidden_size, cfg.patch_dim(), vb.pp("final_layer"))?,
            rope: AxialRope2d::new(cfg.head_dim())?,
            patch_size: cfg.patch_size,
        })
    }

    /// The velocity.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W)`; `condition: (B, L or 1, D)`; `-> (B, C, H, W)` in f32.
    pub fn forward(&self, x_t: &Tensor, condition: &Tensor) -> Result<Tensor> {
        self.forward_kept(x_t, &self.modulations(condition)?)
    }

    /// What `condition` means to this decoder.
    pub fn modulations(&self, condition: &Tensor) -> Result<DecoderModulations> {
        Ok(DecoderModulations {
            blocks: self.blocks.iter().map(|it| it.modulation(condition)).collect::<Result<_>>()?,
            final_shift_scale: self.final_layer.shift_scale(condition)?,
        })
    }

    /// The velocity under modulations computed before; [`forward`](Self::forward) without its products
    /// on the condition.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W) -> (B, C, H, W)` in f32.
    pub fn forward_kept(&self, x_t: &Tensor, modulations: &DecoderModulations) -> Result<Tensor> {
        let (_, _, h, w) = x_t.dims4()?;
        let dtype = modulations.final_shift_scale.dtype();
        let mut xs = self.x_embedder.forward(&x_t.to_dtype(dtype)?)?; // (B, L, D)
        let rope = self.rope.table(h / self.patch_size, w / self.patch_size, x_t.device())?;
        for (block, modulation) in self.blocks.iter().zip(&modulations.blocks) {
            xs = block.forward(&xs, modulation, &rope)?;
        }
        let patches = self.final_layer.forward(&xs, &modulations.final_shift_scale)?; // (B, L, C P^2)
        unpatchify(&patches.to_dtype(DType::F32)?, self.patch_size, (h, w))
    }
}
