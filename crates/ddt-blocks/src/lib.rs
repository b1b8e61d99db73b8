//! The transformer parts DDT is made of, each differentiable end to end.
//!
//! A [`Block`] is attention and a gated MLP, both steered by a [`Modulation`]: a shift, a scale and a
//! gate that [`AdaLn`] computes from a condition. [`Attention`] normalises queries and keys and turns
//! them by the angles of an [`AxialRope2d`]; [`SwiGlu`] is the MLP. Around the blocks,
//! [`PatchEmbed`] turns a latent into tokens, [`TimestepEmbed`] and [`LabelEmbed`] make the condition,
//! and [`FinalLayer`] turns tokens back.
//!
//! [`SitBlock`], [`SitPatchEmbed`] and [`SitAttention`] are the unimproved parts of the paper's baselines, and
//! [`MixerBlock`] a decoder block without attention (Tab. 5).
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
    ada_ln::{AdaLn, AdaLnStack, Modulation},
    attention::Attention,
    block::Block,
    final_layer::FinalLayer,
    grid_conv::GridConv,
    label_embed::LabelEmbed,
    linear::Linear,
    mixer_block::MixerBlock,
    patch::{PatchEmbed, patchify, unpatchify, unpatchify_channel_last},
    rms_norm::RmsNorm,
    rope::AxialRope2d,
    sit_attention::SitAttention,
    sit_block::SitBlock,
    sit_embed::{SitPatchEmbed, sincos_positions},
    swiglu::{SwiGlu, swiglu_hidden_size},
    timestep_embed::TimestepEmbed,
};
pub use ddt_kernels::RopeTable;

mod ada_ln;
mod attention;
mod block;
mod final_layer;
mod grid_conv;
pub mod init;
mod label_embed;
mod linear;
mod mixer_block;
mod patch;
mod projection;
mod rms_norm;
mod rope;
mod sit_attention;
mod sit_block;
mod sit_embed;
mod swiglu;
mod timestep_embed;
