//! SiT's layers (arXiv:2401.08740): what the paper's baselines are made of.

use candle_core::{D, DType, Device, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_kernels::{gate_residual, layer_norm_modulate, silu};

use crate::{attention::head_dim, block::Modulation, linear::Linear, patch::PatchEmbed};

/// Attention, then MLP, as DiT and SiT have them:
///
/// ```text
/// shift1, scale1, gate1, shift2, scale2, gate2 = split(ada_ln(silu(condition)))
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
    ada_ln: Linear,
}

impl SitBlock {
    const EPS: f64 = 1e-6;

    /// Parameters `attn`, `mlp.fc1`, `mlp.fc2`, `adaLN_modulation.1`.
    pub fn new(hidden_size: usize, num_heads: usize, vb: VarBuilder) -> Result<Self> {
        let (d, mlp) = (hidden_size, vb.pp("mlp"));
        Ok(Self {
            attn: SitAttention::new(d, num_heads, vb.pp("attn"))?,
            fc1: Linear::xavier(d, 4 * d, mlp.pp("fc1"))?,
            fc2: Linear::xavier(4 * d, d, mlp.pp("fc2"))?,
            ada_ln: Linear::zeros(d, 6 * d, vb.pp("adaLN_modulation").pp("1"))?,
        })
    }

    /// The block's modulation under `condition`, `(B, 1 or L, D)` before its SiLU.
    pub fn modulation(&self, condition: &Tensor) -> Result<Modulation> {
        Modulation::in_parts(&self.ada_ln, &silu(condition)?)
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`.
    pub fn forward(&self, xs: &Tensor, modulation: &Modulation) -> Result<Tensor> {
        let [shift_scale1, gate1, shift_scale2, gate2] = modulation.to_parts()?;
        let ys = self.attn.forward(&layer_norm_modulate(xs, shift_scale1.source()?, Self::EPS)?)?;
        let xs = gate_residual(xs, gate1.source()?, &ys)?;
        let ys = self.fc1.forward(&layer_norm_modulate(&xs, shift_scale2.source()?, Self::EPS)?)?;
        gate_residual(&xs, gate2.source()?, &self.fc2.forward(&ys.gelu()?)?)
    }
}

/// Multi-head attention over all tokens, of plain differentiable operations:
///
/// ```text
/// q, k, v = split(qkv(x));  y = proj(softmax(q k^T / sqrt(K)) v)
/// ```
///
/// Scores and softmax are in f32.
///
/// # Shapes
/// `xs: (B, L, D) -> (B, L, D)`.
#[derive(Debug, Clone)]
pub struct SitAttention {
    qkv: Linear,
    proj: Linear,
    num_heads: usize,
}

impl SitAttention {
    /// Parameters `qkv` (with a bias, laid out `(3, N, K)`) and `proj`: Xavier-uniform weights, zero biases.
    pub fn new(hidden_size: usize, num_heads: usize, vb: VarBuilder) -> Result<Self> {
        head_dim(hidden_size, num_heads)?;
        Ok(Self {
            qkv: Linear::xavier(hidden_size, 3 * hidden_size, vb.pp("qkv"))?,
            proj: Linear::xavier(hidden_size, hidden_size, vb.pp("proj"))?,
            num_heads,
        })
    }
}

impl Module for SitAttention {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, l, d) = xs.dims3()?;
        let head_dim = d / self.num_heads;
        let qkv = self.qkv.forward(xs)?.reshape((b, l, 3, self.num_heads, head_dim))?;
        let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous(); // (B, N, L, K)
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let scores = (q * (head_dim as f64).sqrt().recip())?.matmul(&k.t()?)?.to_dtype(DType::F32)?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(xs.dtype())?; // (B, N, L, L)
        let ys = weights.matmul(&v)?.transpose(1, 2)?.reshape((b, l, d))?; // (B, L, D)
        self.proj.forward(&ys)
    }
}

/// Patch embedder: a convolution over patches, and fixed positions added to it.
///
/// # Shapes
/// `xs: (B, C, H, W) -> (B, L, D)`, with `L = grid_side^2`; latents of any other size are an error, because the
/// positions are those of one grid.
#[derive(Debug, Clone)]
pub struct SitPatchEmbed {
    embed: PatchEmbed,
    positions: Tensor,
    side: usize,
}

impl SitPatchEmbed {
    /// Parameters as [`PatchEmbed::convolution`]'s. The positions, those of [`sincos_positions`] for `grid_side`
    /// patches along each side, are no parameter.
    pub fn new(
        in_channels: usize,
        patch_size: usize,
        hidden_size: usize,
        grid_side: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let positions = sincos_positions(hidden_size, grid_side)?.to_device(vb.device())?;
        Ok(Self {
            positions: positions.to_dtype(vb.dtype())?,
            embed: PatchEmbed::convolution(in_channels, patch_size, hidden_size, vb)?,
            side: grid_side * patch_size,
        })
    }
}

impl Module for SitPatchEmbed {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ((_, _, h, w), side) = (xs.dims4()?, self.side);
        if (h, w) != (side, side) {
            bail!("expected latents of {side} x {side}, whose positions this network knows, got {h} x {w}");
        }
        self.embed.forward(xs)?.broadcast_add(&self.positions)
    }
}

/// Sines and cosines of the column, then of the row, of each token of a square grid:
///
/// ```text
/// f[i] = 10000^(-4i/D), i = 0 .. D/4;  [sin(x f), cos(x f), sin(y f), cos(y f)]
/// ```
///
/// # Shapes
/// `-> (1, grid_side^2, D)` in f32: the `pos_embed` of DiT's and SiT's files.
///
/// # Errors
/// When `hidden_size` is no multiple of 4, or a side is 0.
pub fn sincos_positions(hidden_size: usize, grid_side: usize) -> Result<Tensor> {
    if !hidden_size.is_multiple_of(4) || hidden_size == 0 || grid_side == 0 {
        bail!("expected a hidden size that is a multiple of 4 and a grid, got {hidden_size} and {grid_side}");
    }
    let quarter = hidden_size / 4;
    let frequencies: Vec<f64> = (0..quarter).map(|i| 10_000f64.powf(-(i as f64) / quarter as f64)).collect();
    let mut table = Vec::with_capacity(grid_side * grid_side * hidden_size);
    for row in 0..grid_side {
        for column in 0..grid_side {
            for position in [column as f64, row as f64] {
                table.extend(frequencies.iter().map(|f| (position * f).sin() as f32));
                table.extend(frequencies.iter().map(|f| (position * f).cos() as f32));
            }
        }
    }
    Tensor::from_vec(table, (1, grid_side * grid_side, hidden_size), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_column_comes_before_the_row() -> Result<()> {
        let table = sincos_positions(8, 3)?;
        assert_eq!(table.dims(), &[1, 9, 8]);
        // Token 5 is row 1, column 2; frequencies 1 and 0.01.
        let token: Vec<f32> = table.get(0)?.get(5)?.to_vec1()?;
        let expected =
            [2f32.sin(), 0.02f32.sin(), 2f32.cos(), 0.02f32.cos(), 1f32.sin(), 0.01f32.sin(), 1f32.cos()];
        for (got, want) in token.iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{token:?}");
        }
        assert!(sincos_positions(6, 3).is_err());
        Ok(())
    }
}
