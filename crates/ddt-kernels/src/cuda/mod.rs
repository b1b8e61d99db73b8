//! The kernels of the sampling loop, of the autoencoder's decoder and of Inception on an NVIDIA GPU.
//!
//! [`Cuda`] is an open device: its context, one stream, and every kernel, looked up once.
//! [`Slice`] is a piece of its memory; the caller divides its own arena into slices
//! ([`Slice::sub`], [`Slice::cast`]).
//! Each launcher is a method of [`Cuda`] that checks its arguments and puts a kernel or a few on the stream: it
//! allocates nothing and waits for nothing, so it may be part of a captured [`Graph`] (except [`Cuda::conv`]).
//!
//! | method | in one pass |
//! |---|---|
//! | [`Cuda::gemm`] | a linear layer with its bias, by cuBLASLt |
//! | [`Cuda::gate_norm`] | gate, bias and residual; then norm and modulation for the next GEMM; also with forecast modulations |
//! | [`Cuda::attention`] | query-key norm, rotary positions, softmax attention on tensor cores |
//! | [`Cuda::attention_plain`] | the same, in the plainest correct way, f32 throughout |
//! | [`Cuda::swiglu`] | the gate of a feed-forward layer, on the fused GEMM |
//! | [`Cuda::add_rows`] | bias, SiLU, and the sum of condition and state |
//! | [`Cuda::class_condition`] | SiLU of time plus class embedding |
//! | [`Cuda::timestep_embedding`] | sines and cosines of the step's time |
//! | [`Cuda::patchify`] | latents to tokens |
//! | [`Cuda::guided_step`] | tokens to latents, guidance and Euler's step |
//! | [`Cuda::next_step`] | moves [`Steps`] on |
//! | [`Cuda::conv`] | a convolution, by cuDNN where it is, otherwise gathered and multiplied |
//! | [`Cuda::group_norm`] | group normalisation with its activation |
//! | [`Cuda::softmax_rows`] | softmax of rows |
//! | [`Cuda::pool`] | the largest or the mean of each window |
//! | [`Cuda::columns`] | results side by side, with bias and ReLU |
//! | [`Cuda::upsample`], [`Cuda::accumulate`] | each position twice in either direction; a sum in place |
//! | [`Cuda::channels_last`], [`Cuda::channels_first`] | images with their channels together, and apart |
//!
//! Elements are bf16 or f32 ([`Float`]); arithmetic is f32.
//! Times, step lengths, guidance scales and weights of forecasts are in device memory ([`Steps`]), so that one captured graph
//! serves all steps.
//!
//! With the feature `cuda` a [`Cuda`] is a GPU, found when `Cuda::open` is called: a program starts
//! without a driver.
//! With the feature `cuda-emulation` it can also be the CPU, running the same kernel sources and launchers
//! slowly, to test them ([`emulation`]).
//! With both, a driver that runs the kernels on the CPU can stand in for NVIDIA's (`stand_in`), to test what talks to a
//! driver.
//!
//! Shape letters: `R` rows (images of the batch, twice when guided), `L` tokens, `T = R L`, `D` hidden
//! size, `N` heads, `K` head size, `F` SwiGLU hidden size, `C` channels, `P` patch size.

mod activation;
mod attention;
mod backend;
#[cfg(feature = "driver")]
mod blas;
#[cfg(feature = "gpu-check")]
pub mod checks;
#[cfg(feature = "cuda")]
mod cudnn;
mod device;
#[cfg(feature = "driver")]
mod driver;
#[cfg(feature = "cuda-emulation")]
pub mod emulation;
mod error;
mod gate_norm;
mod gemm;
mod group_norm;
mod image;
mod kernels;
mod launch;
mod memory;
mod rows;
#[cfg(all(feature = "driver", feature = "cuda-emulation"))]
pub mod stand_in;
mod step;
#[cfg(feature = "driver")]
mod tuning;
#[cfg(feature = "driver")]
mod turn;

pub use activation::{Activation, AddRows, ClassCondition, SwiGlu};
pub use attention::Attention;
pub use backend::Window;
pub use device::{Cuda, Graph};
pub use error::{CudaError, Result};
pub use gate_norm::{Branch, Forecast, GateNorm, Modulate, Norm};
pub use gemm::{Conv, ConvBy, Gemm};
pub use group_norm::GroupNorm;
pub use image::{Columns, Layout, Pool};
pub use memory::{Element, Float, Slice};
pub use rows::Rows;
pub use step::{Grid, GuidedStep, MAX_SETS, Steps};
