//! The three forms of a network: its definition, fused for training, packed for sampling.

use std::fmt;

use candle_core::{DType, Module, Result, Tensor, bail};
use ddt_kernels::{
    BlockWeights, PackedBlockWeights, PackedLinear, PackedSwiGlu, packed_block, transformer_block,
};

use crate::{
    attention::{Attention, RmsNorm, TokenGrid},
    block::{Block, Modulation, SwiGlu, TransformerBlock},
    linear::Linear,
};

/// The way in which the layers of a network compute.
///
/// A network is built in the form [`Plain`], its definition, and converted as a whole. Conversion consumes a layer,
/// so the memory of the original is free before the next one is converted.
pub trait Form: fmt::Debug + Clone + Send + Sync + 'static {
    /// A linear layer.
    type Linear: Module + fmt::Debug + Clone + Send + Sync;
    /// A transformer block.
    type Block: TransformerBlock;

    /// Converts a linear layer.
    ///
    /// # Errors
    /// When the form does not exist for the layer's dtype or device.
    fn linear(layer: Linear) -> Result<Self::Linear>;

    /// Converts a block.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    fn block(block: Block) -> Result<Self::Block>;

    /// The dtype of the tokens in a network that computes in `dtype`.
    fn token_dtype(dtype: DType) -> DType {
        dtype
    }

    /// Converts a parameter that a layer keeps as a tensor.
    fn tensor(parameter: Tensor) -> Result<Tensor> {
        Ok(parameter)
    }
}

/// Layer by layer and differentiable: the definition. Any dtype and device.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

/// Form for training: a block is one differentiable operation, [`transformer_block`], that computes in f32 or bf16,
/// the dtype that it was built with. Weights and the tokens between blocks are f32. On the CPU.
#[derive(Debug, Clone, Copy)]
pub struct Fused;

/// Form for sampling: weights are packed once for matmul, and a block is one operation, [`packed_block`], that is not
/// differentiable. In f32 and bf16 on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct Frozen;

impl Form for Plain {
    type Linear = Linear;
    type Block = Block;

    fn linear(layer: Linear) -> Result<Linear> {
        Ok(layer)
    }

    fn block(block: Block) -> Result<Block> {
        Ok(block)
    }
}

impl Form for Fused {
    type Linear = Linear;
    type Block = FusedBlock;

    fn linear(layer: Linear) -> Result<Linear> {
        Ok(layer)
    }

    fn block(block: Block) -> Result<FusedBlock> {
        let weight = block.ada_ln.weight();
        if weight.dtype() != DType::F32 || !weight.device().is_cpu() {
            let (dtype, device) = (weight.dtype(), weight.device().location());
            bail!(
                "expected weights in f32 on the CPU for fused blocks, got {dtype:?} on {device:?}; \
                 train the plain network"
            );
        }
        Ok(FusedBlock(block))
    }

    fn token_dtype(_: DType) -> DType {
        DType::F32
    }
}

impl Form for Frozen {
    type Linear = PackedLinear;
    type Block = FrozenBlock;

    fn linear(layer: Linear) -> Result<PackedLinear> {
        PackedLinear::new(layer.weight(), layer.bias())
    }

    fn block(block: Block) -> Result<FrozenBlock> {
        let Block { norm1, attn, norm2, mlp: SwiGlu { w1, w2, w3 }, ada_ln, .. } = block;
        let Attention { qkv, qk_norm, proj, num_heads } = attn;
        let norm = |it: RmsNorm| Self::tensor(it.weight().clone());
        let qk_norm = match qk_norm {
            Some([q, k]) => Some([norm(q)?, norm(k)?]),
            None => None,
        };
        let gate = PackedSwiGlu::new(w1.weight(), w3.weight())?;
        let gate = match (w1.bias(), w3.bias()) {
            (Some(b1), Some(b3)) => gate.with_biases(b1, b3)?,
            _ => gate,
        };
        Ok(FrozenBlock {
            ada_ln: Self::linear(ada_ln)?,
            weights: PackedBlockWeights {
                norm1: norm(norm1)?,
                qkv: Self::linear(qkv)?,
                qk_norm,
                proj: Self::linear(proj)?,
                norm2: norm(norm2)?,
                gate,
                w2: Self::linear(w2)?,
            },
            num_heads,
        })
    }

    /// A copy that no variable changes and no gradient reaches.
    fn tensor(parameter: Tensor) -> Result<Tensor> {
        parameter.detach().copy()
    }
}

/// A [`Block`] as one differentiable operation, on the CPU, with f32 weights.
#[derive(Debug, Clone)]
pub struct FusedBlock(Block);

impl TransformerBlock for FusedBlock {
    fn modulation(&self, condition: &Tensor) -> Result<Modulation> {
        Ok(Modulation::of_condition(condition))
    }

    fn forward(&self, xs: &Tensor, modulation: &Modulation, grid: &TokenGrid) -> Result<Tensor> {
        let Block { norm1, attn, norm2, mlp, ada_ln, dtype } = &self.0;
        let (Some(ada_ln_bias), Some(proj_bias)) = (ada_ln.bias(), attn.proj.bias()) else {
            bail!("expected biases of the modulation and of the attention's projection")
        };
        let weights = BlockWeights {
            ada_ln_weight: ada_ln.weight(),
            ada_ln_bias,
            norm1: norm1.weight(),
            qkv: attn.qkv.weight(),
            qkv_bias: attn.qkv.bias(),
            qk_norm: attn.qk_norm.as_ref().map(|it| it.each_ref().map(RmsNorm::weight)),
            proj_weight: attn.proj.weight(),
            proj_bias,
            norm2: norm2.weight(),
            w1: mlp.w1.weight(),
            w2: mlp.w2.weight(),
            w3: mlp.w3.weight(),
            mlp_biases: match [&mlp.w1, &mlp.w2, &mlp.w3].map(Linear::bias) {
                [Some(b1), Some(b2), Some(b3)] => Some([b1, b2, b3]),
                _ => None,
            },
        };
        let condition = modulation.to_joint()?.source()?.to_tensor()?;
        transformer_block(xs, &condition, &weights, &grid.rope, attn.num_heads, RmsNorm::EPS, *dtype)
    }
}

/// A [`Block`] with packed weights as one operation that is not differentiable, in f32 or bf16 on the CPU.
#[derive(Debug, Clone)]
pub struct FrozenBlock {
    ada_ln: PackedLinear,
    weights: PackedBlockWeights,
    num_heads: usize,
}

impl TransformerBlock for FrozenBlock {
    fn modulation(&self, condition: &Tensor) -> Result<Modulation> {
        Modulation::joint(&self.ada_ln, condition)
    }

    fn forward(&self, xs: &Tensor, modulation: &Modulation, grid: &TokenGrid) -> Result<Tensor> {
        let modulation = modulation.to_joint()?;
        packed_block(xs, modulation.source()?, &self.weights, &grid.rope, self.num_heads, RmsNorm::EPS)
    }
}
