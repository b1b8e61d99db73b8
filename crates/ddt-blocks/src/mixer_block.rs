//! A decoder block whose tokens meet by other means than attention.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use ddt_kernels::gate_residual;

use crate::{
    ada_ln::{AdaLn, Modulation},
    grid_conv::GridConv,
    rms_norm::RmsNorm,
    swiglu::{SwiGlu, swiglu_hidden_size},
};

/// [`Block`](crate::Block) with another token mixer in the place of attention (Tab. 5 of arXiv:2504.05741):
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
    ada_ln: AdaLn,
}

#[derive(Debug, Clone)]
enum Mixer {
    Conv(GridConv),
    Mlp(SwiGlu),
}

impl MixerBlock {
    /// With a 3 x 3 convolution on the token grid; parameters `norm1`, `mixer`, `norm2`, `mlp`,
    /// `adaLN_modulation`.
    pub fn convolution(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        let mixer = Mixer::Conv(GridConv::new(hidden_size, vb.pp("mixer"))?);
        Self::new(hidden_size, mixer, vb)
    }

    /// With a second MLP, so that tokens do not meet at all; parameters as
    /// [`convolution`](Self::convolution)'s.
    pub fn mlp(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        let mixer = SwiGlu::new(hidden_size, swiglu_hidden_size(hidden_size), vb.pp("mixer"))?;
        Self::new(hidden_size, Mixer::Mlp(mixer), vb)
    }

    fn new(hidden_size: usize, mixer: Mixer, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            norm1: RmsNorm::new(hidden_size, vb.pp("norm1"))?,
            mixer,
            norm2: RmsNorm::new(hidden_size, vb.pp("norm2"))?,
            mlp: SwiGlu::new(hidden_size, swiglu_hidden_size(hidden_size), vb.pp("mlp"))?,
            ada_ln: AdaLn::new(hidden_size, vb.pp("adaLN_modulation"))?,
        })
    }

    /// What `condition`, `(B, 1 or L, D)`, makes of this block.
    pub fn modulation(&self, condition: &Tensor) -> Result<Modulation> {
        self.ada_ln.forward(condition)
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`; `grid` is the tokens' `(rows, columns)`.
    pub fn forward(&self, xs: &Tensor, modulation: &Modulation, grid: (usize, usize)) -> Result<Tensor> {
        let ys = self.norm1.forward_modulated(xs, &modulation.attn_shift_scale)?;
        let ys = match &self.mixer {
            Mixer::Conv(conv) => conv.forward(&ys, grid)?,
            Mixer::Mlp(mlp) => mlp.forward(&ys)?,
        };
        let xs = gate_residual(xs, &modulation.attn_gate, &ys)?;
        let ys = self.norm2.forward_modulated(&xs, &modulation.mlp_shift_scale)?;
        gate_residual(&xs, &modulation.mlp_gate, &self.mlp.forward(&ys)?)
    }
}
