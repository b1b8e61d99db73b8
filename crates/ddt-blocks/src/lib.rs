//! The transformer parts DDT is made of, each differentiable end to end.
//!
//! A [`Block`] is attention and a gated MLP, both steered by a [`Modulation`]: a shift, a scale and a
//! gate that [`AdaLn`] computes from a condition. [`Attention`] normalises queries and keys and turns
//! them by the angles of an [`AxialRope2d`]; [`SwiGlu`] is the MLP. Around the blocks,
//! [`PatchEmbed`] turns a latent into tokens, [`TimestepEmbed`] and [`LabelEmbed`] make the condition,
//! and [`FinalLayer`] turns tokens back.
//!
//! Layers follow candle's dialect: `Type::new(sizes.., vb)` reads or initialises parameters under the
//! names of the published DDT checkpoints, `forward` computes.
//!
//! Shape letters: `B` batch, `C` channels, `H W` latent height and width, `P` patch, `L` tokens,
//! `D` hidden size, `N` heads, `K` head size, `F` hidden size of the MLP.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use ddt_blocks::{AxialRope2d, Block};
//!
//! let vars = VarMap::new();
//! let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
//! let block = Block::new(32, 2, vb)?;
//! let rope = AxialRope2d::new(16)?.table(4, 4, &Device::Cpu)?;
//! let tokens = Tensor::zeros((1, 16, 32), DType::F32, &Device::Cpu)?;
//! let condition = Tensor::ones((1, 1, 32), DType::F32, &Device::Cpu)?;
//! let modulation = block.modulation(&condition)?;
//! assert_eq!(block.forward(&tokens, &modulation, &rope)?.dims(), &[1, 16, 32]);
//! # Ok::<(), candle_core::Error>(())
//! ```

#![forbid(unsafe_code)]

pub use crate::{
    ada_ln::{AdaLn, Modulation},
    attention::Attention,
    block::Block,
    final_layer::FinalLayer,
    label_embed::LabelEmbed,
    linear::Linear,
    patch::{PatchEmbed, patchify, unpatchify},
    rms_norm::RmsNorm,
    rope::AxialRope2d,
    swiglu::{SwiGlu, swiglu_hidden_size},
    timestep_embed::TimestepEmbed,
};
pub use ddt_kernels::RopeTable;

mod ada_ln;
mod attention;
mod block;
mod final_layer;
pub mod init;
mod label_embed;
mod linear;
mod patch;
mod rms_norm;
mod rope;
mod swiglu;
mod timestep_embed;
