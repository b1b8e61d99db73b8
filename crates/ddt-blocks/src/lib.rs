#![doc = include_str!("../README.md")]
//!
//! # Contents
//!
//! A [`Block`] is [`Attention`] and a gated MLP ([`SwiGlu`]), both under a [`Modulation`]: shifts, scales and gates
//! computed from a condition. Attention rotates queries and keys by the angles of an [`AxialRope2d`]. Around the
//! blocks, [`PatchEmbed`] turns a latent into tokens, [`ConditionEmbed`] embeds time and class, and [`FinalLayer`]
//! turns tokens into patches.
//!
//! These layers are the definition. A [`Form`] is another way to compute them: [`Fused`] for training, [`Frozen`]
//! for sampling.
//!
//! Where DiT^DH's layers differ in a few parts, they are constructors of their own, such as [`Block::dit_dh`].
//! [`SitBlock`], [`SitPatchEmbed`] and [`SitAttention`] are the layers of SiT, and [`MixerBlock`] is a decoder block
//! without attention: the paper's baselines.
//!
//! Layers follow candle's dialect: `Type::new(sizes.., vb)` reads or initialises parameters, and a layer of one tensor
//! is a [`Module`](candle_core::Module).
//!
//! Shape letters: `B` batch, `C` channels, `H W` latent height and width, `P` patch, `L` tokens,
//! `D` hidden size, `N` heads, `K` head size, `F` hidden size of the MLP.

#![forbid(unsafe_code)]

mod attention;
mod block;
mod condition;
mod form;
mod linear;
mod mixer;
mod patch;
mod sit;
mod weighted_sum;

pub use attention::{Attention, AxialRope2d, RmsNorm, TokenGrid};
pub use block::{Block, Modulation, SwiGlu, TransformerBlock, swiglu_hidden_size};
pub use condition::{ConditionEmbed, LabelEmbed, TimestepEmbed};
pub use ddt_kernels::RopeTable;
pub use form::{Form, Frozen, FrozenBlock, Fused, FusedBlock, Plain};
pub use linear::{Linear, ProjectionHead};
pub use mixer::{GridConv, MixerBlock};
pub use patch::{FinalLayer, PatchEmbed, patchify, unpatchify, unpatchify_channel_last};
pub use sit::{SitAttention, SitBlock, SitPatchEmbed, sincos_positions};
pub use weighted_sum::WeightedSum;
