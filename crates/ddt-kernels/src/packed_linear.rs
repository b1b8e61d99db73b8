//! A linear layer with packed weights.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Module, Result, Tensor, bail};
use half::bf16;

use crate::cpu::element::Element;
use crate::cpu::gemm::{ASource, Matrix, PackedB, matmul};
use crate::cpu::microkernel::Operand;
use crate::op::{check_alike, check_shape, with_last, with_slices};

const NAME: &str = "packed_linear";

/// A linear layer that is not trained: its weights are stored in the order in which a GEMM reads them.
///
/// ```text
/// y = x weight^T + bias
/// ```
///
/// Packing costs about as much as a GEMM of a few dozen rows, and [`linear`](fn@crate::linear) packs at every call.
/// Sums are f32; in bf16 a result is rounded once, after the bias.
/// The packed weights take as much memory as the originals, which can be dropped. Cloning is cheap.
#[derive(Clone)]
pub struct PackedLinear {
    weights: Arc<Weights>,
}

struct Weights {
    packed: PackedWeights,
    bias: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
}

/// Packed weights of either type.
#[derive(Clone)]
pub(crate) enum PackedWeights {
    F32(PackedB<f32>),
    Bf16(PackedB<bf16>),
}

/// An element type of packed weights: f32 or bf16.
pub(crate) trait Packable: Operand + Element {
    fn weights(packed: PackedB<Self>) -> PackedWeights;

    fn of(weights: &PackedWeights) -> Option<&PackedB<Self>>;
}

macro_rules! packable {
    ($t:ty, $variant:ident) => {
        impl Packable for $t {
            fn weights(packed: PackedB<Self>) -> PackedWeights {
                PackedWeights::$variant(packed)
            }

            fn of(weights: &PackedWeights) -> Option<&PackedB<Self>> {
                match weights {
                    PackedWeights::$variant(packed) => Some(packed),
                    _ => None,
                }
            }
        }
    };
}

packable!(f32, F32);
packable!(bf16, Bf16);

impl PackedWeights {
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::BF16,
        }
    }

    /// The weights in type `T`.
    pub(crate) fn get<T: Packable>(&self) -> Result<&PackedB<T>> {
        match T::of(self) {
            Some(packed) => Ok(packed),
            None => bail!("expected packed weights in {:?}, got {:?}", T::DTYPE, self.dtype()),
        }
    }
}

/// Calls `$f`, a function of an element type, with the element type of `$dtype`.
macro_rules! for_packable {
    ($op:expr, $dtype:expr, $($f:ident)::+ ( $($arg:expr),* )) => {
        match $dtype {
            candle_core::DType::F32 => $($f)::+::<f32>($($arg),*),
            candle_core::DType::BF16 => $($f)::+::<half::bf16>($($arg),*),
            other => candle_core::bail!("{}: expected weights in f32 or bf16, got {other:?}", $op),
        }
    };
}
pub(crate) use for_packable;

/// Number of rows, (..), of a tensor (.., K).
pub(crate) fn num_rows(x: &Tensor) -> usize {
    x.dims().iter().rev().skip(1).product()
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

impl PackedLinear {
    /// Packs `weight`, (N, K), with `bias`, (N), both f32 or both bf16.
    ///
    /// # Errors
    /// If a shape or a dtype is another, or if a tensor is not on the CPU.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let Ok((outputs, inputs)) = weight.dims2() else {
            bail!("{NAME}: expected weight of shape (N, K), got {:?}", weight.shape());
        };
        if !weight.device().is_cpu() {
            bail!("{NAME}: expected weight on the CPU, got {:?}", weight.device().location());
        }
        if let Some(bias) = bias {
            check_alike(NAME, &[("weight", weight), ("bias", bias)])?;
            check_shape(NAME, "bias", bias, &[outputs])?;
        }
        let packed = for_packable!(NAME, weight.dtype(), pack(weight))?;
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
    /// If the shape, the dtype or the device of `x` is another.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Weights { inputs, outputs, .. } = *self.weights;
        check_input(NAME, x, inputs, self.dtype())?;
        let shape = with_last(x.dims(), outputs);
        if !x.track_op() {
            return for_packable!(NAME, self.dtype(), Self::multiply(self, x))?.reshape(shape);
        }
        let y = x.reshape(((), inputs))?.matmul(&self.weight()?.t()?)?;
        let y = match &self.weights.bias {
            Some(bias) => y.broadcast_add(&Tensor::new(bias.as_slice(), x.device())?.to_dtype(x.dtype())?)?,
            None => y,
        };
        y.reshape(shape)
    }

    fn multiply<T: Packable>(&self, x: &Tensor) -> Result<Tensor> {
        let Weights { ref packed, inputs, outputs, .. } = *self.weights;
        let (b, rows) = (packed.get::<T>()?, num_rows(x));
        let out: Vec<T> = with_slices([x], |[x]| matmul(ASource::rows(x, rows, inputs), b, self.bias()))?;
        Tensor::from_vec(out, (rows, outputs), &Device::Cpu)
    }

    /// The dtype of the weights.
    pub fn dtype(&self) -> DType {
        self.weights.packed.dtype()
    }

    pub(crate) fn packed(&self) -> &PackedWeights {
        &self.weights.packed
    }

    pub(crate) fn bias(&self) -> Option<&[f32]> {
        self.weights.bias.as_deref()
    }

    /// K and N.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.weights.inputs, self.weights.outputs)
    }

    /// A copy of the weights as they were packed, (N, K).
    ///
    /// # Errors
    /// If the tensor cannot be made.
    pub fn weight(&self) -> Result<Tensor> {
        let Weights { ref packed, inputs, outputs, .. } = *self.weights;
        match packed {
            PackedWeights::F32(it) => Tensor::from_vec(it.unpacked(), (outputs, inputs), &Device::Cpu),
            PackedWeights::Bf16(it) => Tensor::from_vec(it.unpacked(), (outputs, inputs), &Device::Cpu),
        }
    }
}

fn pack<T: Packable>(weight: &Tensor) -> Result<PackedWeights> {
    let (outputs, inputs) = weight.dims2()?;
    with_slices([weight], |[it]| T::weights(PackedB::new(Matrix::transposed(it, inputs, outputs))))
}

impl Module for PackedLinear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        PackedLinear::forward(self, x)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_in, error, plain_linear, random, refused};

    #[test]
    fn packed_layers_match_in_f32_and_bf16_and_give_their_weights_back() -> Result<()> {
        // bf16 is allowed the rounding of one result, half a unit in the last place of 8 bits.
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 4e-3)] {
            for (rows, inputs, outputs) in [(1, 1, 1), (3, 33, 70), (20, 600, 32), (0, 4, 3)] {
                let new = |seed, shape: &[usize]| random(seed, shape)?.to_dtype(dtype);
                let (x, weight) = (new(1, &[1, rows, inputs])?, new(2, &[outputs, inputs])?);
                let bias = new(3, &[outputs])?;
                let packed = PackedLinear::new(&weight, Some(&bias))?;
                let got = packed.forward(&x)?;
                assert_eq!((got.dtype(), got.dims()), (dtype, &[1, rows, outputs][..]));
                let exact = |x: &Tensor| x.to_dtype(DType::F64);
                if rows > 0 {
                    let want = plain_linear(&exact(&x)?, &exact(&weight)?)?.broadcast_add(&exact(&bias)?)?;
                    let found = error(&got, &want)?;
                    assert!(found < tolerance, "{dtype:?}: error {found:e}");
                }
                let back = (exact(&packed.weight()?)? - exact(&weight)?)?.abs()?.max_all()?;
                assert_eq!(back.to_scalar::<f64>()?, 0.0);
            }
        }
        Ok(())
    }

    #[test]
    fn a_packed_layer_passes_the_gradient_of_its_input_on() -> Result<()> {
        let (weight, bias) = (random(2, &[5, 4])?, random(3, &[5])?);
        let packed = PackedLinear::new(&weight, Some(&bias))?;
        check_in(
            &[(DType::F32, 1e-5)],
            &[random(1, &[2, 3, 4])?],
            |x| packed.forward(&x[0]),
            |x| {
                plain_linear(&x[0], &weight.to_dtype(DType::F64)?)?.broadcast_add(&bias.to_dtype(DType::F64)?)
            },
        )
    }

    #[test]
    fn wrong_arguments_are_refused() -> Result<()> {
        let (x, weight) = (random(1, &[2, 4])?, random(2, &[5, 4])?);
        let packed = PackedLinear::new(&weight, None)?;
        refused(packed.forward(&weight.t()?), "expected x of shape (.., 4), got [4, 5]");
        refused(packed.forward(&x.to_dtype(DType::BF16)?), "expected x in F32 on the CPU, got BF16");
        assert!(PackedLinear::new(&weight.to_dtype(DType::F16)?, None).is_err());
        assert!(PackedLinear::new(&weight, Some(&x)).is_err());
        Ok(())
    }
}
