//! The transformer block, the same in both halves of DDT: its definition, layer by layer.

use std::fmt;

use candle_core::{DType, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_kernels::{gate_residual, swiglu};

use crate::{
    attention::{Attention, RmsNorm, TokenGrid},
    linear::Linear,
    weighted_sum::WeightedSum,
};

/// Shift, scale and gate of a block's attention, then of its MLP: `(B, M, 6D)`.
///
/// `M` is 1 where the condition is one vector per image (condition encoder), `L` where it is one per token
/// (velocity decoder). A modulation depends on the condition only, and is cached with it.
///
/// It is one tensor, or four: a frozen block reads one, while single layers read four and would pad the gradient of
/// each to the whole if they were views of one. Both take either. That of a [fused](crate::Fused) block, which only it
/// reads, is the condition itself, `(B, M, D)`: the block computes the rest in its one operation.
#[derive(Debug, Clone)]
pub struct Modulation(Vec<WeightedSum>);

impl Modulation {
    /// The condition, `(B, M, D)`, for a block that computes the rest.
    pub(crate) fn of_condition(condition: &Tensor) -> Self {
        Self(vec![condition.clone().into()])
    }

    /// Computes the modulation as one tensor, `(B, M, 6D)`.
    pub(crate) fn joint(ada_ln: &impl Module, condition: &Tensor) -> Result<Self> {
        Ok(Self(vec![ada_ln.forward(condition)?.into()]))
    }

    /// Four tensors, each a matmul of its own.
    pub(crate) fn in_parts(ada_ln: &Linear, condition: &Tensor) -> Result<Self> {
        let d = ada_ln.weight().dim(0)? / 6;
        let part = |(start, len)| Ok(ada_ln.outputs(start, len)?.forward(condition)?.into());
        Ok(Self(parts_of(d).into_iter().map(part).collect::<Result<_>>()?))
    }

    /// The weighted sum of modulations of one block: a forecast from earlier ones.
    ///
    /// # Errors
    /// When there are none, or some are one tensor and others four.
    pub fn weighted_sum(terms: &[(&Self, f64)]) -> Result<Self> {
        let count = terms.first().map_or(0, |(it, _)| it.0.len());
        if count == 0 || terms.iter().any(|(it, _)| it.0.len() != count) {
            bail!("expected modulations of one block in one form");
        }
        let sum = |part: usize| WeightedSum::of(terms.iter().map(|(it, weight)| (&it.0[part], *weight)));
        Ok(Self((0..count).map(sum).collect::<Result<_>>()?))
    }

    /// The modulation as one tensor, `(B, M, 6D)`.
    pub(crate) fn to_joint(&self) -> Result<WeightedSum> {
        match self.0.as_slice() {
            [joint] => Ok(joint.clone()),
            parts => WeightedSum::cat(parts),
        }
    }

    /// Shift and scale `(B, M, 2D)` and gate `(B, M, D)` of the attention, then of the MLP.
    pub(crate) fn to_parts(&self) -> Result<[WeightedSum; 4]> {
        match self.0.as_slice() {
            [attn, attn_gate, mlp, mlp_gate] => {
                Ok([attn.clone(), attn_gate.clone(), mlp.clone(), mlp_gate.clone()])
            }
            _ => {
                let joint = self.to_joint()?;
                let [attn, attn_gate, mlp, mlp_gate] =
                    parts_of(joint.width()? / 6).map(|(first, width)| joint.columns(first, width));
                Ok([attn?, attn_gate?, mlp?, mlp_gate?])
            }
        }
    }

    /// The modulation of the first `batch` rows.
    pub fn narrow_batch(&self, batch: usize) -> Result<Self> {
        Ok(Self(self.0.iter().map(|it| it.narrow_batch(batch)).collect::<Result<_>>()?))
    }
}

/// First column and width of each part.
fn parts_of(d: usize) -> [(usize, usize); 4] {
    [(0, 2 * d), (2 * d, d), (3 * d, 2 * d), (5 * d, d)]
}

/// A transformer block of any [form](crate::Form).
pub trait TransformerBlock: fmt::Debug + Clone + Send + Sync + 'static {
    /// The block's modulation under `condition`, `(B, 1 or L, D)`.
    fn modulation(&self, condition: &Tensor) -> Result<Modulation>;

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`; `grid` has `L` tokens.
    fn forward(&self, xs: &Tensor, modulation: &Modulation, grid: &TokenGrid) -> Result<Tensor>;
}

/// Attention, then MLP, each normalised, modulated, gated and added:
///
/// ```text
/// shift1, scale1, gate1, shift2, scale2, gate2 = split(ada_ln(condition))
/// x += gate1 * attn(rms1(x) (1 + scale1) + shift1)
/// x += gate2 * mlp (rms2(x) (1 + scale2) + shift2)
/// ```
///
/// Differs from DiT: no SiLU before `ada_ln` (it is in the condition), which does not start at zero.
///
/// DiT^DH's block has biases in all linear layers, no norm of queries and keys, and a modulation that starts at zero
/// after a SiLU of its own, which the caller applies to the condition.
#[derive(Debug, Clone)]
pub struct Block {
    pub(crate) norm1: RmsNorm,
    pub(crate) attn: Attention,
    pub(crate) norm2: RmsNorm,
    pub(crate) mlp: SwiGlu,
    pub(crate) ada_ln: Linear,
    /// The type that a fused block computes in.
    pub(crate) dtype: DType,
}

impl Block {
    /// DDT's: parameters `norm1`, `attn`, `norm2`, `mlp`, `adaLN_modulation.0`.
    pub fn new(hidden_size: usize, num_heads: usize, vb: VarBuilder) -> Result<Self> {
        let d = hidden_size;
        Ok(Self {
            norm1: RmsNorm::new(d, vb.pp("norm1"))?,
            attn: Attention::new(d, num_heads, vb.pp("attn"))?,
            norm2: RmsNorm::new(d, vb.pp("norm2"))?,
            mlp: SwiGlu::new(d, swiglu_hidden_size(d), vb.pp("mlp"))?,
            ada_ln: Linear::new(d, 6 * d, vb.pp("adaLN_modulation").pp("0"))?,
            dtype: vb.dtype(),
        })
    }

    /// DiT^DH's: the same parameters but `adaLN_modulation.1`; `mlp_size` is the inner size of the MLP.
    pub fn dit_dh(
        hidden_size: usize,
        num_heads: usize,
        mlp_size: usize,
        qk_norm: bool,
        vb: VarBuilder,
    ) -> Result<Self> {
        let d = hidden_size;
        Ok(Self {
            norm1: RmsNorm::new(d, vb.pp("norm1"))?,
            attn: Attention::dit_dh(d, num_heads, qk_norm, vb.pp("attn"))?,
            norm2: RmsNorm::new(d, vb.pp("norm2"))?,
            mlp: SwiGlu::dit_dh(d, mlp_size, vb.pp("mlp"))?,
            ada_ln: Linear::zeros(d, 6 * d, vb.pp("adaLN_modulation").pp("1"))?,
            dtype: vb.dtype(),
        })
    }
}

impl TransformerBlock for Block {
    fn modulation(&self, condition: &Tensor) -> Result<Modulation> {
        Modulation::in_parts(&self.ada_ln, condition)
    }

    fn forward(&self, xs: &Tensor, modulation: &Modulation, grid: &TokenGrid) -> Result<Tensor> {
        let [shift_scale1, gate1, shift_scale2, gate2] = modulation.to_parts()?;
        let ys = self.attn.forward(&self.norm1.forward_modulated(xs, shift_scale1.source()?)?, &grid.rope)?;
        let xs = gate_residual(xs, gate1.source()?, &ys)?;
        let ys = self.mlp.forward(&self.norm2.forward_modulated(&xs, shift_scale2.source()?)?)?;
        gate_residual(&xs, gate2.source()?, &ys)
    }
}

/// Gated MLP: `y = w2(silu(w1 x) * w3 x)`. DDT's has no biases, DiT^DH's has them in all layers.
///
/// # Shapes
/// `xs: (B, L, D) -> (B, L, D)`.
#[derive(Debug, Clone)]
pub struct SwiGlu {
    pub(crate) w1: Linear,
    pub(crate) w2: Linear,
    pub(crate) w3: Linear,
}

impl SwiGlu {
    /// DDT's: parameters `w1`, `w2`, `w3`; `hidden` is the inner size `F`, see [`swiglu_hidden_size`].
    pub fn new(size: usize, hidden: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            w1: Linear::no_bias(size, hidden, vb.pp("w1"))?,
            w2: Linear::no_bias(hidden, size, vb.pp("w2"))?,
            w3: Linear::no_bias(size, hidden, vb.pp("w3"))?,
        })
    }

    /// DiT^DH's: parameters `w12`, whose outputs are those of `w1` and then of `w3`, and `w3`, which is `w2`.
    pub fn dit_dh(size: usize, hidden: usize, vb: VarBuilder) -> Result<Self> {
        let both = Linear::new(size, 2 * hidden, vb.pp("w12"))?;
        Ok(Self {
            w1: both.outputs(0, hidden)?,
            w2: Linear::new(hidden, size, vb.pp("w3"))?,
            w3: both.outputs(hidden, hidden)?,
        })
    }
}

impl Module for SwiGlu {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.w2.forward(&swiglu(&self.w1.forward(xs)?, &self.w3.forward(xs)?)?)
    }
}

/// Hidden size of DDT's MLP: two thirds of four times `hidden_size`, rounded down.
pub fn swiglu_hidden_size(hidden_size: usize) -> usize {
    2 * (4 * hidden_size) / 3
}
