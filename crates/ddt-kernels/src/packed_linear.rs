//! A linear layer whose weights lie as products read them.

use std::fmt;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use crate::cpu::gemm::{Left, Packed, Right, product};
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

/// A packed factor of either type.
#[derive(Clone)]
pub(crate) enum Factors {
    F32(Packed<f32>),
    Bf16(Packed<bf16>),
}

impl Factors {
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::BF16,
        }
    }
}

impl Factors {
    fn joins(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::F32(it), Self::F32(next)) => it.joins(next),
            (Self::Bf16(it), Self::Bf16(next)) => it.joins(next),
            _ => false,
        }
    }

    /// The factors of `layers` side by side; those that nothing else holds go as they are copied.
    fn joined(layers: Vec<PackedLinear>) -> Option<Self> {
        let factors = |it: PackedLinear| match Arc::try_unwrap(it.weights) {
            Ok(weights) => weights.packed,
            Err(shared) => shared.packed.clone(),
        };
        let (mut f32s, mut bf16s) = (Vec::new(), Vec::new());
        for it in layers.into_iter().map(factors) {
            match it {
                Self::F32(it) => f32s.push(it),
                Self::Bf16(it) => bf16s.push(it),
            }
        }
        match (f32s.is_empty(), bf16s.is_empty()) {
            (false, true) => Packed::joined(f32s).map(Self::F32),
            (true, false) => Packed::joined(bf16s).map(Self::Bf16),
            _ => None,
        }
    }
}

impl From<Packed<f32>> for Factors {
    fn from(packed: Packed<f32>) -> Self {
        Self::F32(packed)
    }
}

impl From<Packed<bf16>> for Factors {
    fn from(packed: Packed<bf16>) -> Self {
        Self::Bf16(packed)
    }
}

/// Fails unless `x` is (.., `inputs`) in `dtype`, on the CPU.
pub(crate) fn check_input(op: &str, x: &Tensor, inputs: usize, dtype: DType) -> Result<()> {
    if x.dims().last() != Some(&inputs) {
        bail!("{op}: expected x of shape (.., {inputs}), got {:?}", x.shape());
    }
    if x.dtype() != dtype || !x.device().is_cpu() {
        let (got, at) = (x.dtype(), x.device().location());
        bail!("{op}: expected x in {dtype:?} on the CPU, got {got:?} on {at:?}");
    }
    Ok(())
}

/// Runs `$body` with the type `$t` standing for the element type of `$dtype`, one that can be packed.
macro_rules! of_dtype {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            other => candle_core::bail!("{}: expected weights in f32 or bf16, got {other:?}", $op),
        }
    };
}
pub(crate) use of_dtype;

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
        let packed = of_dtype!(NAME, weight.dtype(), T => {
            with_slices!(T; weight => Packed::kept(Right::columns(weight, inputs, outputs)).into())
        });
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
        check_input(NAME, x, inputs, self.dtype())?;
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

    /// Layers of one input as one layer whose outputs are theirs, in order, and these layers again, as parts of
    /// it: one product for all instead of one each, in the same memory.
    ///
    /// # Errors
    ///
    /// The layers as they were, where they do not fit: of different inputs or dtypes, with and without bias, or
    /// of widths that leave gaps between packed columns.
    pub fn joined(layers: Vec<Self>) -> std::result::Result<(Self, Vec<Self>), Vec<Self>> {
        let fits = |first: &Self, it: &Self| {
            first.weights.packed.joins(&it.weights.packed) && it.bias().is_some() == first.bias().is_some()
        };
        let Some(first) = layers.first() else { return Err(layers) };
        if !layers.iter().all(|it| fits(first, it)) {
            return Err(layers);
        }
        let (inputs, has_bias) = (first.weights.inputs, first.bias().is_some());
        let widths: Vec<usize> = layers.iter().map(|it| it.weights.outputs).collect();
        let biases = layers.iter().filter_map(Self::bias).flatten().copied();
        let bias = has_bias.then(|| biases.collect::<Vec<f32>>());
        let Some(packed) = Factors::joined(layers) else { return Err(Vec::new()) };
        let of = |packed, first: usize, outputs: usize| {
            let bias = bias.as_ref().map(|it| it[first..first + outputs].to_vec());
            Self { weights: Arc::new(Weights { packed, bias, inputs, outputs }) }
        };
        let mut first = 0;
        let mut part = |width: usize| {
            let packed = match &packed {
                Factors::F32(it) => Factors::F32(it.part(first, width)),
                Factors::Bf16(it) => Factors::Bf16(it.part(first, width)),
            };
            first += width;
            of(packed, first - width, width)
        };
        let parts = widths.iter().map(|width| part(*width)).collect();
        Ok((of(packed, 0, widths.iter().sum()), parts))
    }

    /// The dtype of the weights.
    pub fn dtype(&self) -> DType {
        self.weights.packed.dtype()
    }

    pub(crate) fn factors(&self) -> &Factors {
        &self.weights.packed
    }

    pub(crate) fn bias(&self) -> Option<&[f32]> {
        self.weights.bias.as_deref()
    }

    /// K and N.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.weights.inputs, self.weights.outputs)
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
                storage::from_vec(product(Left::rows(x, rows, inputs), packed, bias))
            }
        };
        Ok((out, Shape::from(shape)))
    }
}
