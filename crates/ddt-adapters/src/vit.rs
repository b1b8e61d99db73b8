//! The block of a frozen vision transformer, read under the names of any file that has one.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_kernels::Activation;

use crate::layers::{LayerNorm, Linear, attention, unrounded};

/// Sizes of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockSizes {
    pub(crate) width: usize,
    pub(crate) num_heads: usize,
    pub(crate) mlp_width: usize,
    pub(crate) norm_eps: f64,
}

/// Names of a block's tensors in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockNames {
    pub(crate) norm1: &'static str,
    /// The layer of queries, keys and values, or one layer of each.
    pub(crate) qkv: &'static [&'static str],
    pub(crate) proj: &'static str,
    pub(crate) norm2: &'static str,
    pub(crate) mlp: MlpNames,
    /// Factors of the results of attention and feed-forward layer.
    pub(crate) scales: Option<[&'static str; 2]>,
}

/// Names of the first and the last layer of the feed-forward layer, which tell its kind.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MlpNames {
    /// Exact GELU.
    Gelu([&'static str; 2]),
    /// SwiGLU, gate and value in the first layer.
    SwiGlu([&'static str; 2]),
}

/// Transformer block: `(B, L, D) -> (B, L, D)`.
///
/// ```text
/// x += gamma_1 attn(norm1(x)),   x += gamma_2 mlp(norm2(x))
/// ```
///
/// Both `gamma`, where there are any, are multiplied into the weights before them.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
    num_heads: usize,
}

impl Block {
    pub(crate) fn new(sizes: &BlockSizes, names: &BlockNames, vb: VarBuilder) -> Result<Self> {
        let BlockSizes { width, num_heads, mlp_width, norm_eps } = *sizes;
        let exact = unrounded(&vb);
        let gamma = |branch: usize| names.scales.map(|it| exact.get(width, it[branch])).transpose();
        let (gamma1, gamma2) = (gamma(0)?, gamma(1)?);
        let rows = 3 * width / names.qkv.len();
        let weights = names.qkv.iter().map(|it| vb.pp(it).get((rows, width), "weight"));
        let biases = names.qkv.iter().map(|it| exact.pp(it).get(rows, "bias"));
        let weight = Tensor::cat(&weights.collect::<Result<Vec<_>>>()?, 0)?;
        let bias = Tensor::cat(&biases.collect::<Result<Vec<_>>>()?, 0)?;
        Ok(Self {
            norm1: LayerNorm::new(width, norm_eps, vb.pp(names.norm1))?,
            qkv: Linear::of(&weight, Some(&bias))?.rounded(),
            proj: scaled(width, width, gamma1.as_ref(), vb.pp(names.proj))?,
            norm2: LayerNorm::new(width, norm_eps, vb.pp(names.norm2))?,
            mlp: Mlp::new(width, mlp_width, names.mlp, gamma2.as_ref(), vb)?,
            num_heads,
        })
    }
}

impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(xs)?)?;
        let xs = self.proj.forward_add(&attention(&qkv, self.num_heads)?, xs)?;
        let normed = self.norm2.forward(&xs)?;
        match &self.mlp {
            Mlp::Gelu { fc1, fc2 } => fc2.forward_add(&fc1.forward(&normed)?, &xs),
            Mlp::SwiGlu { gate, up, down } => {
                down.forward_add(&(gate.forward(&normed)? * up.forward(&normed)?)?, &xs)
            }
        }
    }
}

/// The feed-forward layer; activations belong to `fc1` and `gate`.
#[derive(Debug, Clone)]
enum Mlp {
    Gelu { fc1: Linear, fc2: Linear },
    SwiGlu { gate: Linear, up: Linear, down: Linear },
}

impl Mlp {
    /// `vb` is the block's.
    fn new(
        width: usize,
        inner: usize,
        names: MlpNames,
        gamma: Option<&Tensor>,
        vb: VarBuilder,
    ) -> Result<Self> {
        match names {
            MlpNames::Gelu([first, last]) => Ok(Self::Gelu {
                fc1: Linear::new(width, inner, vb.pp(first))?.then(Activation::Gelu).rounded(),
                fc2: scaled(inner, width, gamma, vb.pp(last))?,
            }),
            MlpNames::SwiGlu([first, last]) => {
                let both = vb.pp(first);
                let weight = both.get((2 * inner, width), "weight")?;
                let bias = unrounded(&both).get(2 * inner, "bias")?;
                let half = |first| {
                    Linear::of(&weight.narrow(0, first, inner)?, Some(&bias.narrow(0, first, inner)?))
                };
                Ok(Self::SwiGlu {
                    gate: half(0)?.then(Activation::Silu).rounded(),
                    up: half(inner)?.rounded(),
                    down: scaled(inner, width, gamma, vb.pp(last))?,
                })
            }
        }
    }
}

/// A linear layer whose outputs are multiplied by the `out` elements of `gamma`.
fn scaled(inp: usize, out: usize, gamma: Option<&Tensor>, vb: VarBuilder) -> Result<Linear> {
    let Some(gamma) = gamma else { return Linear::new(inp, out, vb) };
    let exact = unrounded(&vb);
    let (weight, bias) = (exact.get((out, inp), "weight")?, exact.get(out, "bias")?);
    let weight = weight.broadcast_mul(&gamma.unsqueeze(1)?)?.to_dtype(vb.dtype())?;
    Linear::of(&weight, Some(&(bias * gamma)?))
}
