//! A linear layer whose weights lie as products read them.

use std::fmt;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use crate::cpu::gemm::{Left, Packed, Right, product, product_bf16};
use crate::cpu::storage::{self, with_slices};

const NAME: &str = "packed_linear";

/// A linear layer that is not trained: its weights are kept in the order in which products read them.
///
/// ```text
/// y = x weight^T + bias
/// ```
///
/// Packing costs about what a product with a few dozen rows does, and [`linear`](fn@crate::linear) packs at
/// every call. Sums are f32; in bf16 a result is rounded once, after the bias.
/// The packed weights take the memory of the originals, which need not be kept. Cloning is cheap.
#[derive(Clone)]
pub struct PackedLinear {
    weights: Arc<Weights>,
}

struct Weights {
    packed: Factors,
    bias: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
}

enum Factors {
    F32(Packed<f32>),
    Bf16(Packed<bf16>),
}

impl PackedLinear {
    /// Packs `weight`, (N, K), with `bias`, (N), both f32 or both bf16.
    ///
    /// # Errors
    ///
    /// If a shape or a dtype is another, or if a tensor is not on the CPU.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let Ok((outputs, inputs)) = weight.dims2() else {
            bail!("{NAME}: expected weight of shape (N, K), got {:?}", weight.shape());
        };
        if !weight.device().is_cpu() {
            bail!("{NAME}: expected weight on the CPU, got {:?}", weight.device().location());
        }
        if let Some(bias) = bias
            && (bias.dims() != [outputs] || bias.dtype() != weight.dtype())
        {
            let (dtype, got) = (weight.dtype(), bias.dtype());
            bail!(
                "{NAME}: expected bias of shape ({outputs}) in {dtype:?}, got {:?} in {got:?}",
                bias.shape()
            );
        }
        let weight = weight.contiguous()?;
        let packed = match weight.dtype() {
            DType::F32 => with_slices!(f32; weight => {
                Factors::F32(Packed::kept(Right::columns(weight, inputs, outputs)))
            }),
            DType::BF16 => with_slices!(bf16; weight => {
                Factors::Bf16(Packed::kept(Right::columns(weight, inputs, outputs)))
            }),
            other => bail!("{NAME}: expected weight in f32 or bf16, got {other:?}"),
        };
        let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.to_vec1()).transpose()?;
        Ok(Self { weights: Arc::new(Weights { packed, bias, inputs, outputs }) })
    }

    /// The result for `x`, in its dtype, which is that of the weights.
    ///
    /// Where `x` depends on a variable, weights are unpacked for this call and the result is differentiable.
    ///
    /// # Shapes
    ///
    /// `x`: (.., K); result: (.., N).
    ///
    /// # Errors
    ///
    /// If the shape, the dtype or the device of `x` is another.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Weights { inputs, outputs, .. } = *self.weights;
        if x.dims().last() != Some(&inputs) {
            bail!("{NAME}: expected x of shape (.., {inputs}), got {:?}", x.shape());
        }
        if x.dtype() != self.dtype() || !x.device().is_cpu() {
            let (got, at) = (x.dtype(), x.device().location());
            bail!("{NAME}: expected x in {:?} on the CPU, got {got:?} on {at:?}", self.dtype());
        }
        if !x.track_op() {
            return x.contiguous()?.apply_op1(self.clone());
        }
        let leading = x.dims().len() - 1;
        let shape: Vec<usize> = x.dims().iter().take(leading).copied().chain([outputs]).collect();
        let y = x.reshape(((), inputs))?.matmul(&self.weight()?.t()?)?;
        let y = match &self.weights.bias {
            Some(bias) => y.broadcast_add(&Tensor::new(bias.as_slice(), x.device())?.to_dtype(x.dtype())?)?,
            None => y,
        };
        y.reshape(shape)
    }

    /// The dtype of the weights.
    pub fn dtype(&self) -> DType {
        match self.weights.packed {
            Factors::F32(_) => DType::F32,
            Factors::Bf16(_) => DType::BF16,
        }
    }

    /// The weights as they were, (N, K): a copy.
    ///
    /// # Errors
    ///
    /// If the tensor cannot be made.
    pub fn weight(&self) -> Result<Tensor> {
        let Weights { ref packed, inputs, outputs, .. } = *self.weights;
        let device = &candle_core::Device::Cpu;
        match packed {
            Factors::F32(packed) => Tensor::from_vec(packed.unpacked(), (outputs, inputs), device),
            Factors::Bf16(packed) => Tensor::from_vec(packed.unpacked(), (outputs, inputs), device),
        }
    }
}

impl fmt::Debug for PackedLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Weights { inputs, outputs, ref bias, .. } = *self.weights;
        f.debug_struct("PackedLinear")
            .field("inputs", &inputs)
            .field("outputs", &outputs)
            .field("bias", &bias.is_some())
            .field("dtype", &self.dtype())
            .finish()
    }
}

impl CustomOp1 for PackedLinear {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Weights { ref packed, ref bias, inputs, outputs } = *self.weights;
        let leading = layout.dims().len() - 1;
        let leading = || layout.dims().iter().take(leading).copied();
        let (rows, shape) = (leading().product(), leading().chain([outputs]).collect::<Vec<_>>());
        let bias = bias.as_deref();
        let out = match packed {
            Factors::F32(packed) => {
                let x = storage::slice(x, layout)?;
                storage::from_vec(product(Left::rows(x, rows, inputs), packed, bias))
            }
            Factors::Bf16(packed) => {
                let x = storage::slice(x, layout)?;
                storage::from_vec(product_bf16(Left::rows(x, rows, inputs), packed, bias))
            }
        };
        Ok((out, Shape::from(shape)))
    }
}
