//! Which DINOv2.

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// Sizes of a DINOv2 vision transformer.
///
/// The presets are the published ones, patch 14, trained on 518 px; [`with_registers`](Self::with_registers)
/// gives their variants with register tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DinoV2Config {
    /// Width of a token.
    pub hidden_size: usize,
    /// Number of transformer blocks.
    pub num_blocks: usize,
    /// Attention heads; they divide `hidden_size`.
    pub num_heads: usize,
    /// Pixels along a side of a patch.
    pub patch_size: usize,
    /// Patches along a side of the square that the stored positions are for.
    pub position_grid: usize,
    /// Register tokens: 4 in the published variants that have them, otherwise 0.
    pub num_registers: usize,
    /// What stands between the two halves of a block's feed-forward layer.
    pub mlp: DinoV2Mlp,
}

/// The feed-forward layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DinoV2Mlp {
    /// Exact GELU, four times as wide (`mlp.fc1`, `mlp.fc2`).
    Gelu,
    /// SwiGLU (`mlp.w12`, `mlp.w3`), of [`swiglu_width`].
    SwiGlu,
}

/// Width of the SwiGLU feed-forward layer: two thirds of four times the width, rounded up to eights.
pub fn swiglu_width(hidden_size: usize) -> usize {
    (hidden_size * 4 * 2 / 3).next_multiple_of(8)
}

impl DinoV2Config {
    /// ViT-S/14, `dinov2_vits14_pretrain.pth`.
    pub fn vit_s() -> Self {
        Self {
            hidden_size: 384,
            num_blocks: 12,
            num_heads: 6,
            patch_size: 14,
            position_grid: 37,
            num_registers: 0,
            mlp: DinoV2Mlp::Gelu,
        }
    }

    /// ViT-B/14, `dinov2_vitb14_pretrain.pth`: the one that DDT is aligned with.
    pub fn vit_b() -> Self {
        Self { hidden_size: 768, num_heads: 12, ..Self::vit_s() }
    }

    /// ViT-L/14, `dinov2_vitl14_pretrain.pth`.
    pub fn vit_l() -> Self {
        Self { hidden_size: 1024, num_blocks: 24, num_heads: 16, ..Self::vit_s() }
    }

    /// ViT-g/14, `dinov2_vitg14_pretrain.pth`.
    pub fn vit_g() -> Self {
        Self { hidden_size: 1536, num_blocks: 40, num_heads: 24, mlp: DinoV2Mlp::SwiGlu, ..Self::vit_s() }
    }

    /// The same with four register tokens, `dinov2_vit*14_reg4_pretrain.pth`.
    pub fn with_registers(self) -> Self {
        Self { num_registers: 4, ..self }
    }

    /// Says what is wrong with this configuration, if anything.
    ///
    /// # Errors
    ///
    /// A size of zero or beyond 65536, and heads that do not divide the width.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_blocks", self.num_blocks),
            ("num_heads", self.num_heads),
            ("patch_size", self.patch_size),
            ("position_grid", self.position_grid),
            ("num_registers", self.num_registers + 1),
        ];
        for (name, size) in sizes {
            if !(1..=65536).contains(&size) {
                bail!("{name}: expected at least 1 and at most 65536, got {size}");
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_heads) {
            bail!("expected num_heads to divide hidden_size {}, got {}", self.hidden_size, self.num_heads);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_others_are_not() {
        for cfg in [
            DinoV2Config::vit_s(),
            DinoV2Config::vit_b(),
            DinoV2Config::vit_l(),
            DinoV2Config::vit_g().with_registers(),
        ] {
            cfg.validate().unwrap();
        }
        assert_eq!(swiglu_width(DinoV2Config::vit_g().hidden_size), 4096);
        let wrong = [
            DinoV2Config { num_heads: 5, ..DinoV2Config::vit_s() },
            DinoV2Config { num_heads: 0, ..DinoV2Config::vit_s() },
            DinoV2Config { position_grid: 1 << 40, ..DinoV2Config::vit_s() },
        ];
        for cfg in wrong {
            assert!(cfg.validate().is_err(), "{cfg:?}");
        }
    }
}
