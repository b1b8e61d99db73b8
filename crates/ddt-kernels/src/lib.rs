//! Fused, differentiable transformer operations for candle.
//!
//! Each function does in one pass over memory the work of many plain candle operations. Those for training have a
//! gradient; those with packed weights do not.
//!
//! - [`rms_norm_modulate`], [`layer_norm_modulate`]: normalise, then shift and scale;
//! - [`attention`]: query-key norm, rotary positions ([`RopeTable`]) and softmax attention; [`rotary_attention`]: the same
//!   without the norm;
//! - [`gate_residual`]: adds a gated branch to the residual stream;
//! - [`swiglu`], [`silu`], [`add_silu`]: activations;
//! - [`neighbours`]: the 3 x 3 surroundings of each place, which turn a convolution into a linear layer;
//! - [`linear`]: a linear layer; [`transformer_block`]: a whole block as one operation; both on the CPU, in f32 or bf16
//!   with f32 weights;
//! - [`PackedLinear`], [`PackedSwiGlu`], [`packed_block`]: the same with packed weights, f32 or bf16, for inference;
//! - [`ModulationSource`]: a modulation that is a weighted sum of tensors, computed where it is read;
//! - [`PackedConv2d`], [`group_norm`], [`max_pool2d`], [`mean_pool2d`]: layers of frozen networks over images whose
//!   channels are stored together; [`layer_norm`], [`softmax_attention`]: over tokens; none has a gradient;
//! - [`InstructionSet`]: a limit on the CPU's instructions; [`gemm_peak_flops`]: the peak that GEMMs are measured
//!   against; [`retain_freed_memory`]: keeps freed pages mapped so that later steps do not fault them in again.
//!
//! A *modulation* (shift and scale, gate, or addend) is one row per image, (B, 1, ·), or one per token,
//! (B, L, ·); the gradient of a row per image sums over the image's tokens.
//! Shape letters: `B` batch, `L` tokens, `D` hidden size, `N` heads, `K` head size.
//!
//! Tensors are f32, bf16 or f16; sums are f32, as is all arithmetic except that bf16
//! GEMMs multiply bf16; results have the dtype of the arguments.
//! Strided arguments are copied first.
//! On the CPU the widest instruction set is chosen at run time, and work is spread over rayon's current
//! pool; the number of threads does not change a bit of the results.
//!
//! ```
//! use candle_core::{DType, Device, Tensor, Var};
//! use ddt_kernels::{gate_residual, rms_norm_modulate};
//!
//! # fn main() -> candle_core::Result<()> {
//! let device = Device::Cpu;
//! let weight = Var::ones(8, DType::F32, &device)?;
//! let x = Tensor::arange(0f32, 48., &device)?.reshape((2, 3, 8))?;
//! let shift_scale = Tensor::zeros((2, 1, 16), DType::F32, &device)?;
//! let gate = Tensor::ones((2, 1, 8), DType::F32, &device)?;
//!
//! let normed = rms_norm_modulate(&x, weight.as_tensor(), &shift_scale, 1e-6)?;
//! let out = gate_residual(&x, &gate, &normed)?;
//! assert_eq!(out.dims(), [2, 3, 8]);
//! assert!(out.sum_all()?.backward()?.get(&weight).is_some());
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

mod activation;
mod anywhere;
mod arguments;
mod attention;
#[cfg(any(feature = "cuda-emulation", feature = "nccl-stand-in"))]
mod compiler;
mod conv2d;
mod cpu;
#[cfg(any(feature = "driver", feature = "cuda-emulation"))]
pub mod cuda;
mod freed_memory;
mod gate_residual;
#[cfg(feature = "candle-cuda")]
mod gpu;
mod group_norm;
mod instruction_set;
mod layer_norm;
mod layer_norm_modulate;
mod linear;
mod modulated_rows;
mod modulation;
#[cfg(feature = "nccl")]
pub mod nccl;
mod neighbours;
mod op;
mod packed_block;
mod packed_linear;
mod packed_swiglu;
mod plain;
mod pool2d;
mod rms_norm_modulate;
mod rope;
#[cfg(test)]
mod testing;
mod transformer_block;

pub use activation::{add_silu, silu, swiglu};
pub use attention::{attention, rotary_attention, softmax_attention};
pub use conv2d::PackedConv2d;
pub use cpu::gemm::gemm_peak_flops;
pub use cpu::pointwise::Activation;
pub use freed_memory::retain_freed_memory;
pub use gate_residual::gate_residual;
pub use group_norm::{GroupNormOptions, group_norm};
pub use instruction_set::InstructionSet;
pub use layer_norm::layer_norm;
pub use layer_norm_modulate::layer_norm_modulate;
pub use linear::linear;
pub use modulation::ModulationSource;
pub use neighbours::neighbours;
pub use packed_block::{PackedBlockWeights, packed_block};
pub use packed_linear::PackedLinear;
pub use packed_swiglu::PackedSwiGlu;
pub use pool2d::{Window2d, max_pool2d, mean_pool2d};
pub use rms_norm_modulate::rms_norm_modulate;
pub use rope::RopeTable;
pub use transformer_block::{BlockWeights, transformer_block};
