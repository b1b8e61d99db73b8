//! One transformer block.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::{DinoV2Config, DinoV2Mlp, swiglu_width};
use crate::dense::{Epilogue, LayerNorm, Linear, attention};

/// The reference's, ten times below PyTorch's default.
const EPS: f64 = 1e-6;

/// `x += g1 attn(norm1(x))`, `x += g2 mlp(norm2(x))`; both scales `g` lie in the weights before them.
#[derive(Debug, Clone)]
pub(super) struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
    num_heads: usize,
}

#[derive(Debug, Clone)]
enum Mlp {
    Gelu { fc1: Linear, fc2: Linear },
    SwiGlu { gate: Linear, up: Linear, down: Linear },
}

impl Block {
    pub(super) fn new(cfg: &DinoV2Config, vb: VarBuilder) -> Result<Self> {
        let width = cfg.hidden_size;
        let attn = vb.pp("attn");
        let (weight, bias) = tensors(width, 3 * width, attn.pp("qkv"))?;
        // The queries' rows carry the scale of the scores, 1 / sqrt(K).
        let scale = 1.0 / ((width / cfg.num_heads) as f64).sqrt();
        let scaled = |xs: Tensor| {
            let queries = (xs.narrow(0, 0, width)? * scale)?;
            Tensor::cat(&[queries, xs.narrow(0, width, 2 * width)?], 0)
        };
        let proj = scaled_by(vb.get(width, "ls1.gamma")?, tensors(width, width, attn.pp("proj"))?)?;
        Ok(Self {
            norm1: layer_norm(width, vb.pp("norm1"))?,
            qkv: Linear::new(&scaled(weight)?, Some(&scaled(bias)?))?,
            proj,
            norm2: layer_norm(width, vb.pp("norm2"))?,
            mlp: Mlp::new(cfg, &vb)?,
            num_heads: cfg.num_heads,
        })
    }

    /// `(B, L, D) -> (B, L, D)`
    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(xs)?, Epilogue::None)?;
        let xs = self.proj.forward_add(&attention(&qkv, self.num_heads)?, xs, Epilogue::None)?;
        let normed = self.norm2.forward(&xs)?;
        match &self.mlp {
            Mlp::Gelu { fc1, fc2 } => {
                fc2.forward_add(&fc1.forward(&normed, Epilogue::Gelu)?, &xs, Epilogue::None)
            }
            Mlp::SwiGlu { gate, up, down } => {
                let gated =
                    (gate.forward(&normed, Epilogue::Silu)? * up.forward(&normed, Epilogue::None)?)?;
                down.forward_add(&gated, &xs, Epilogue::None)
            }
        }
    }
}

impl Mlp {
    fn new(cfg: &DinoV2Config, vb: &VarBuilder) -> Result<Self> {
        let (width, mlp) = (cfg.hidden_size, vb.pp("mlp"));
        let gamma = vb.get(width, "ls2.gamma")?;
        match cfg.mlp {
            DinoV2Mlp::Gelu => {
                let (weight, bias) = tensors(width, 4 * width, mlp.pp("fc1"))?;
                Ok(Self::Gelu {
                    fc1: Linear::new(&weight, Some(&bias))?,
                    fc2: scaled_by(gamma, tensors(4 * width, width, mlp.pp("fc2"))?)?,
                })
            }
            DinoV2Mlp::SwiGlu => {
                let inner = swiglu_width(width);
                let (weight, bias) = tensors(width, 2 * inner, mlp.pp("w12"))?;
                let half = |first| {
                    let weight = weight.narrow(0, first, inner)?.contiguous()?;
                    Linear::new(&weight, Some(&bias.narrow(0, first, inner)?.contiguous()?))
                };
                Ok(Self::SwiGlu {
                    gate: half(0)?,
                    up: half(inner)?,
                    down: scaled_by(gamma, tensors(inner, width, mlp.pp("w3"))?)?,
                })
            }
        }
    }
}

pub(super) fn layer_norm(width: usize, vb: VarBuilder) -> Result<LayerNorm> {
    Ok(LayerNorm::new(vb.get(width, "weight")?, vb.get(width, "bias")?, EPS))
}

/// `weight: (out, in)` and `bias: (out)`.
fn tensors(inp: usize, out: usize, vb: VarBuilder) -> Result<(Tensor, Tensor)> {
    Ok((vb.get((out, inp), "weight")?, vb.get(out, "bias")?))
}

/// The linear layer whose outputs are `gamma` times those of this one.
fn scaled_by(gamma: Tensor, (weight, bias): (Tensor, Tensor)) -> Result<Linear> {
    Linear::new(&weight.broadcast_mul(&gamma.unsqueeze(1)?)?, Some(&(bias * gamma)?))
}
