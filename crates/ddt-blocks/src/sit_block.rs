//! SiT's transformer block, unimproved.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use ddt_kernels::{gate_residual, layer_norm_modulate, silu};

use crate::{
    ada_ln::{AdaLn, Modulation},
    init,
    linear::Linear,
    sit_attention::SitAttention,
};

/// Attention, then MLP, as DiT and SiT have them:
///
/// ```text
/// modulation = linear(silu(condition))
/// x += gate1 * attn(ln(x) (1 + scale1) + shift1)
/// x += gate2 * fc2(gelu(fc1(ln(x) (1 + scale2) + shift2)))
/// ```
///
/// Differs from [`Block`](crate::Block): LayerNorm without affine parameters instead of RMSNorm, no norm of
/// queries and keys, no rotary positions, a GELU (tanh) MLP four times as wide, and a SiLU of its own before
/// a modulation that starts at zero.
#[derive(Debug, Clone)]
pub struct SitBlock {
    attn: SitAttention,
    fc1: Linear,
    fc2: Linear,
    ada_ln: AdaLn,
}

impl SitBlock {
    const EPS: f64 = 1e-6;

    /// Parameters `attn`, `mlp.fc1`, `mlp.fc2`, `adaLN_modulation.1`.
    pub fn new(hidden_size: usize, num_heads: usize, vb: VarBuilder) -> Result<Self> {
        let (d, mlp) = (hidden_size, vb.pp("mlp"));
        Ok(Self {
            attn: SitAttention::new(d, num_heads, vb.pp("attn"))?,
            fc1: init::xavier_linear(d, 4 * d, mlp.pp("fc1"))?,
            fc2: init::xavier_linear(4 * d, d, mlp.pp("fc2"))?,
            ada_ln: AdaLn::zeroed(d, vb.pp("adaLN_modulation"))?,
        })
    }

    /// What `condition`, `(B, 1 or L, D)` and not yet activated, makes of this block.
    pub fn modulation(&self, condition: &Tensor) -> Result<Modulation> {
        self.ada_ln.forward(&silu(condition)?)
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`.
    pub fn forward(&self, xs: &Tensor, modulation: &Modulation) -> Result<Tensor> {
        let ys = layer_norm_modulate(xs, &modulation.attn_shift_scale, Self::EPS)?;
        let xs = gate_residual(xs, &modulation.attn_gate, &self.attn.forward(&ys)?)?;
        let ys = layer_norm_modulate(&xs, &modulation.mlp_shift_scale, Self::EPS)?;
        let ys = self.fc2.forward(&self.fc1.forward(&ys)?.gelu()?)?;
        gate_residual(&xs, &modulation.mlp_gate, &ys)
    }
}
