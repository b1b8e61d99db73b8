//! Decoder blocks without attention (Tab. 5 of arXiv:2504.05741).

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_kernels::gate_residual;

use crate::{
    attention::{RmsNorm, TokenGrid},
    block::{Modulation, SwiGlu, TransformerBlock, swiglu_hidden_size},
    linear::Linear,
};

/// [`Block`](crate::Block) with another token mixer in place of attention:
///
/// ```text
/// x += gate1 * mixer(rms1(x) (1 + scale1) + shift1)
/// x += gate2 * mlp  (rms2(x) (1 + scale2) + shift2)
/// ```
#[derive(Debug, Clone)]
pub struct MixerBlock {
    norm1: RmsNorm,
    mixer: Mixer,
    norm2: RmsNorm,
    mlp: SwiGlu,
    ada_ln: Linear,
}

#[derive(Debug, Clone)]
enum Mixer {
    Conv(GridConv),
    Mlp(SwiGlu),
}

impl MixerBlock {
    /// Builds a block with a 3 x 3 convolution on the token grid; parameters `norm1`, `mixer`, `norm2`, `mlp`,
    /// `adaLN_modulation.0`.
    pub fn convolution(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        let mixer = Mixer::Conv(GridConv::new(hidden_size, vb.pp("mixer"))?);
        Self::new(hidden_size, mixer, vb)
    }

    /// Builds a block with a second MLP, so that tokens do not see each other; parameters as
    /// [`convolution`](Self::convolution)'s.
    pub fn mlp(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        let mixer = SwiGlu::new(hidden_size, swiglu_hidden_size(hidden_size), vb.pp("mixer"))?;
        Self::new(hidden_size, Mixer::Mlp(mixer), vb)
    }

    fn new(hidden_size: usize, mixer: Mixer, vb: VarBuilder) -> Result<Self> {
        let d = hidden_size;
        Ok(Self {
            norm1: RmsNorm::new(d, vb.pp("norm1"))?,
            mixer,
            norm2: RmsNorm::new(d, vb.pp("norm2"))?,
            mlp: SwiGlu::new(d, swiglu_hidden_size(d), vb.pp("mlp"))?,
            ada_ln: Linear::new(d, 6 * d, vb.pp("adaLN_modulation").pp("0"))?,
        })
    }
}

impl TransformerBlock for MixerBlock {
    fn modulation(&self, condition: &Tensor) -> Result<Modulation> {
        Modulation::in_parts(&self.ada_ln, condition)
    }

    fn forward(&self, xs: &Tensor, modulation: &Modulation, grid: &TokenGrid) -> Result<Tensor> {
        let [shift_scale1, gate1, shift_scale2, gate2] = modulation.to_parts()?;
        let ys = self.norm1.forward_modulated(xs, shift_scale1.source()?)?;
        let ys = match &self.mixer {
            Mixer::Conv(conv) => conv.forward(&ys, (grid.rows, grid.columns))?,
            Mixer::Mlp(mlp) => mlp.forward(&ys)?,
        };
        let xs = gate_residual(xs, gate1.source()?, &ys)?;
        let ys = self.mlp.forward(&self.norm2.forward_modulated(&xs, shift_scale2.source()?)?)?;
        gate_residual(&xs, gate2.source()?, &ys)
    }
}

/// A 3 x 3 convolution on the grid of tokens, zero beyond the edge:
///
/// ```text
/// y[r, c] = b + sum over i, j in 0 .. 3 of W[i, j] x[r + i - 1, c + j - 1]
/// ```
///
/// One matmul on gathered neighbours. The weight is `(D, 9 D)`, its columns ordered row offset, column offset,
/// channel: a PyTorch `nn.Conv2d` weight `(D, D, 3, 3)` permuted by `(0, 2, 3, 1)`.
#[derive(Debug, Clone)]
pub struct GridConv {
    linear: Linear,
}

impl GridConv {
    /// Parameters `weight` and `bias`, initialised as PyTorch's `nn.Conv2d`.
    pub fn new(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        // The bound of PyTorch's convolution is that of its linear layer of equal fan-in.
        Ok(Self { linear: Linear::new(9 * hidden_size, hidden_size, vb)? })
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`; `grid` is the tokens' `(rows, columns)`, in row-major order.
    ///
    /// # Errors
    /// When the tokens do not fill the grid.
    pub fn forward(&self, xs: &Tensor, grid: (usize, usize)) -> Result<Tensor> {
        let (b, l, d) = xs.dims3()?;
        let (rows, columns) = grid;
        if rows.checked_mul(columns) != Some(l) {
            bail!("expected tokens of a {rows} x {columns} grid, got {l}");
        }
        let gathered = ddt_kernels::neighbours(&xs.reshape((b, rows, columns, d))?)?; // (B, R, C, 9 D)
        self.linear.forward(&gathered.reshape((b, l, 9 * d))?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    use super::*;

    #[test]
    fn is_the_convolution() -> Result<()> {
        let map = VarMap::new();
        let (d, rows, columns) = (4, 3, 5);
        let conv = GridConv::new(d, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
        let xs = Tensor::arange(0f32, (2 * d * rows * columns) as f32, &Device::Cpu)?.sin()?;
        let image = xs.reshape((2, d, rows, columns))?;
        let tokens = image.flatten_from(2)?.transpose(1, 2)?.contiguous()?; // (B, L, D)
        let got = conv.forward(&tokens, (rows, columns))?;
        let weight = conv.linear.weight().reshape((d, 3, 3, d))?.permute((0, 3, 1, 2))?.contiguous()?;
        let want = image.conv2d(&weight, 1, 1, 1, 1)?;
        let bias = map.data().lock().unwrap()["bias"].reshape((1, d, 1, 1))?;
        let want = want.broadcast_add(&bias)?.flatten_from(2)?.transpose(1, 2)?;
        assert!((got - want)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
        assert!(conv.forward(&tokens, (5, 5)).is_err());
        Ok(())
    }
}
