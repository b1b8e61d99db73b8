//! One transformer block, the same in both halves of DDT.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_kernels::{
    BlockWeights, ModulationSource, PackedBlockWeights, RopeTable, gate_residual, packed_block,
    transformer_block,
};

use crate::{
    ada_ln::{AdaLn, Modulation},
    attention::Attention,
    rms_norm::RmsNorm,
    swiglu::{Gate, SwiGlu, swiglu_hidden_size},
};

/// Attention, then MLP, each normalised, modulated, gated and added:
///
/// ```text
/// x += gate1 * attn(rms1(x) (1 + scale1) + shift1)
/// x += gate2 * mlp (rms2(x) (1 + scale2) + shift2)
/// ```
#[derive(Debug, Clone)]
pub struct Block {
    norm1: RmsNorm,
    attn: Attention,
    norm2: RmsNorm,
    mlp: SwiGlu,
    ada_ln: AdaLn,
    /// All of these, for one operation, where none is trained.
    packed: Option<PackedBlockWeights>,
}

impl Block {
    /// Parameters `norm1`, `attn`, `norm2`, `mlp`, `adaLN_modulation`.
    pub fn new(hidden_size: usize, num_heads: usize, vb: VarBuilder) -> Result<Self> {
        let (norm1, norm2) =
            (RmsNorm::new(hidden_size, vb.pp("norm1"))?, RmsNorm::new(hidden_size, vb.pp("norm2"))?);
        let attn = Attention::new(hidden_size, num_heads, vb.pp("attn"))?;
        let mlp = SwiGlu::new(hidden_size, swiglu_hidden_size(hidden_size), vb.pp("mlp"))?;
        let ada_ln = AdaLn::new(hidden_size, vb.pp("adaLN_modulation"))?;
        let packed = packed([&norm1, &norm2], &attn, &mlp);
        Ok(Self { norm1, attn, norm2, mlp, ada_ln, packed })
    }

    /// What `condition`, `(B, 1 or L, D)`, makes of this block.
    /// It depends on the condition alone, so a caller who keeps the condition may keep this too.
    pub fn modulation(&self, condition: &Tensor) -> Result<Modulation> {
        if fuses(condition) { self.ada_ln.forward_whole(condition) } else { self.ada_ln.forward(condition) }
    }

    pub(crate) fn ada_ln_mut(&mut self) -> &mut AdaLn {
        &mut self.ada_ln
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`; `rope` has `L` rows.
    pub fn forward(&self, xs: &Tensor, modulation: &Modulation, rope: &RopeTable) -> Result<Tensor> {
        let heads = self.attn.num_heads;
        if let (Some((whole, first)), Some(weights)) = (&modulation.whole, &self.packed)
            && !(xs.track_op() || whole.track_op())
        {
            let whole = ModulationSource::from(whole).from_column(*first);
            return packed_block(xs, whole, weights, rope, heads, RmsNorm::EPS);
        }
        if let (Some((whole, 0)), Some(weights), true) = (&modulation.whole, self.weights(), fuses(xs)) {
            return transformer_block(xs, whole, &weights, rope, heads, RmsNorm::EPS);
        }
        let ys = self.norm1.forward_modulated(xs, &modulation.attn_shift_scale)?;
        let xs = gate_residual(xs, &modulation.attn_gate, &self.attn.forward(&ys, rope)?)?;
        let ys = self.norm2.forward_modulated(&xs, &modulation.mlp_shift_scale)?;
        gate_residual(&xs, &modulation.mlp_gate, &self.mlp.forward(&ys)?)
    }

    /// All weights, unless they are packed.
    fn weights(&self) -> Option<BlockWeights<'_>> {
        let (attn, mlp) = (&self.attn, &self.mlp);
        let proj = attn.proj.plain()?;
        let Gate::Plain { w1, w3 } = &mlp.gate else { return None };
        Some(BlockWeights {
            norm1: self.norm1.weight(),
            qkv: attn.qkv.plain()?.weight(),
            q_norm: attn.q_norm.weight(),
            k_norm: attn.k_norm.weight(),
            proj_weight: proj.weight(),
            proj_bias: proj.bias()?,
            norm2: self.norm2.weight(),
            w1: w1.weight(),
            w2: mlp.w2.plain()?.weight(),
            w3: w3.weight(),
        })
    }
}

/// The weights for [`packed_block`], which share those of the layers, if all are packed.
fn packed([norm1, norm2]: [&RmsNorm; 2], attn: &Attention, mlp: &SwiGlu) -> Option<PackedBlockWeights> {
    let Gate::Packed(gate) = &mlp.gate else { return None };
    let norm = |it: &RmsNorm| Some(it.weight().clone()).filter(|it| !it.track_op());
    Some(PackedBlockWeights {
        norm1: norm(norm1)?,
        qkv: attn.qkv.packed()?.clone(),
        q_norm: norm(&attn.q_norm)?,
        k_norm: norm(&attn.k_norm)?,
        proj: attn.proj.packed()?.clone(),
        norm2: norm(norm2)?,
        gate: gate.clone(),
        w2: mlp.w2.packed()?.clone(),
    })
}

/// Whether the whole block is one operation for such tensors.
fn fuses(xs: &Tensor) -> bool {
    xs.dtype() == DType::F32 && xs.device().is_cpu()
}
