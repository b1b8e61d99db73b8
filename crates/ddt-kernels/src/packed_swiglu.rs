//! The first half of a gated MLP with packed weights.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use pulp::Simd;

use crate::activation::swiglu;
use crate::cpu::exp::silu;
use crate::cpu::gemm::{ASource, Destination, Epilogue, Matrix, PackedB, TileRow, collect, gemm};
use crate::cpu::lanes::update;
use crate::op::{check_alike, check_shape, with_last, with_slices};
use crate::packed_linear::{Packable, PackedWeights, check_input, for_packable, num_rows};

const NAME: &str = "packed_swiglu";

/// Two linear layers and the gate between them, which are not trained.
///
/// ```text
/// y = silu(x w1^T + b1) * (x w3^T + b3)
/// ```
///
/// One GEMM computes both and applies the gate to its tiles, so neither result is written to memory.
/// Sums are f32; in bf16 the result is rounded once.
/// Cloning is cheap.
#[derive(Clone)]
pub struct PackedSwiGlu {
    weights: Arc<Weights>,
    /// Of `w1` and of `w3`, (F) each.
    biases: Option<Arc<[Vec<f32>; 2]>>,
}

struct Weights {
    packed: PackedWeights,
    inputs: usize,
    outputs: usize,
}

impl PackedSwiGlu {
    /// Packs `w1` and `w3`, each (F, D), both f32 or both bf16.
    ///
    /// # Errors
    /// If a shape or a dtype is another, or if a tensor is not on the CPU.
    pub fn new(w1: &Tensor, w3: &Tensor) -> Result<Self> {
        let Ok((outputs, inputs)) = w1.dims2() else {
            bail!("{NAME}: expected w1 of shape (F, D), got {:?}", w1.shape());
        };
        check_alike(NAME, &[("w1", w1), ("w3", w3)])?;
        check_shape(NAME, "w3", w3, w1.dims())?;
        if !w1.device().is_cpu() {
            bail!("{NAME}: expected weights on the CPU, got {:?}", w1.device().location());
        }
        let packed = for_packable!(NAME, w1.dtype(), pack(w1, w3))?;
        Ok(Self { weights: Arc::new(Weights { packed, inputs, outputs }), biases: None })
    }

    /// The same layers with biases, each (F); without this call there are none.
    ///
    /// # Errors
    /// If a shape or a dtype is another, or if a tensor is not on the CPU.
    pub fn with_biases(self, b1: &Tensor, b3: &Tensor) -> Result<Self> {
        let bias = |name, bias: &Tensor| {
            check_shape(NAME, name, bias, &[self.weights.outputs])?;
            if bias.dtype() != self.dtype() || !bias.device().is_cpu() {
                let (dtype, device) = (bias.dtype(), bias.device().location());
                bail!(
                    "{NAME}: expected {name} in {:?} on the CPU, got {dtype:?} on {device:?}",
                    self.dtype()
                );
            }
            bias.to_dtype(DType::F32)?.to_vec1()
        };
        let biases = Some(Arc::new([bias("b1", b1)?, bias("b3", b3)?]));
        Ok(Self { biases, ..self })
    }

    /// The result for `x`, in its dtype, which is that of the weights.
    ///
    /// Where `x` depends on a variable, weights are unpacked for this call and the result is differentiable.
    ///
    /// # Shapes
    ///
    /// `x`: (.., D); result: (.., F).
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
        let rows = x.reshape(((), inputs))?;
        let half = |i: usize, weight: &Tensor| {
            let half = rows.matmul(&weight.t()?)?;
            let Some(biases) = &self.biases else { return Ok(half) };
            half.broadcast_add(&Tensor::new(biases[i].as_slice(), x.device())?.to_dtype(x.dtype())?)
        };
        let [w1, w3] = self.weights()?;
        swiglu(&half(0, &w1)?, &half(1, &w3)?)?.reshape(shape)
    }

    /// The end of the GEMM.
    pub(crate) fn epilogue(&self) -> SwiGluGate<'_> {
        SwiGluGate { biases: self.biases.as_deref() }
    }

    fn multiply<T: Packable>(&self, x: &Tensor) -> Result<Tensor> {
        let Weights { ref packed, inputs, outputs } = *self.weights;
        let (b, rows) = (packed.get::<T>()?, num_rows(x));
        let out: Vec<T> = with_slices([x], |[x]| {
            collect(rows * outputs, |out| {
                gemm(ASource::rows(x, rows, inputs), b, &Destination::new(out, outputs), &self.epilogue());
            })
        })?;
        Tensor::from_vec(out, (rows, outputs), &Device::Cpu)
    }

    /// The dtype of the weights.
    pub fn dtype(&self) -> DType {
        self.weights.packed.dtype()
    }

    /// Copies of `w1` and `w3` as they were packed.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn weights(&self) -> Result<[Tensor; 2]> {
        let Weights { ref packed, inputs, outputs } = *self.weights;
        let [w1, w3] = match packed {
            PackedWeights::F32(it) => {
                it.unpaired(outputs).map(|it| Tensor::from_vec(it, (outputs, inputs), &Device::Cpu))
            }
            PackedWeights::Bf16(it) => {
                it.unpaired(outputs).map(|it| Tensor::from_vec(it, (outputs, inputs), &Device::Cpu))
            }
        };
        Ok([w1?, w3?])
    }

    pub(crate) fn packed(&self) -> &PackedWeights {
        &self.weights.packed
    }

    /// D and F.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.weights.inputs, self.weights.outputs)
    }
}

fn pack<T: Packable>(w1: &Tensor, w3: &Tensor) -> Result<PackedWeights> {
    let (outputs, inputs) = w1.dims2()?;
    with_slices([w1, w3], |weights| {
        let [w1, w3] = weights.map(|it| Matrix::transposed(it, inputs, outputs));
        T::weights(PackedB::pair(w1, w3))
    })
}

/// `silu(a) * b`, where B is the pair of the weights of `a` and `b`.
pub(crate) struct SwiGluGate<'a> {
    biases: Option<&'a [Vec<f32>; 2]>,
}

impl Epilogue for SwiGluGate<'_> {
    const PAIRED: bool = true;

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, _row: usize, col: usize, cols: usize, sums: &mut TileRow) {
        let (a, b) = sums.split_at_mut(S::F32_LANES);
        if let Some(biases) = self.biases {
            for (sums, bias) in [&mut *a, &mut *b].into_iter().zip(biases) {
                sums.iter_mut().zip(&bias[col..][..cols]).for_each(|(sum, bias)| *sum += bias);
            }
        }
        update(
            simd,
            [a],
            [&b[..S::F32_LANES]],
            #[inline(always)]
            |[a], [b]| [simd.mul_f32s(silu(simd, a), b)],
        );
    }
}

impl fmt::Debug for PackedSwiGlu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Weights { inputs, outputs, .. } = *self.weights;
        let mut debug = f.debug_struct("PackedSwiGlu");
        debug.field("inputs", &inputs).field("outputs", &outputs).field("biases", &self.biases.is_some());
        debug.field("dtype", &self.dtype()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_in, error, plain_linear, plain_silu, random};

    #[test]
    fn a_gated_layer_matches_gives_its_weights_back_and_passes_gradients_on() -> Result<()> {
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 4e-3)] {
            for (rows, d, f) in [(1, 1, 1), (3, 33, 70), (20, 600, 32), (15, 8, 17), (0, 4, 3)] {
                let new = |seed, shape: &[usize]| random(seed, shape)?.to_dtype(dtype);
                let (x, w1, w3) = (new(1, &[1, rows, d])?, new(2, &[f, d])?, new(3, &[f, d])?);
                let (w1, w3) = ((w1 * 0.3)?, (w3 * 0.3)?);
                let gate = PackedSwiGlu::new(&w1, &w3)?;
                let got = gate.forward(&x)?;
                assert_eq!((got.dtype(), got.dims()), (dtype, &[1, rows, f][..]));
                let exact = |x: &Tensor| x.to_dtype(DType::F64);
                let product = |w: &Tensor| plain_linear(&exact(&x)?, &exact(w)?);
                if rows > 0 {
                    let found = error(&got, &(plain_silu(&product(&w1)?)? * product(&w3)?)?)?;
                    assert!(found < tolerance, "{dtype:?} {rows} x {d} x {f}: error {found:e}");
                }
                for (back, weight) in gate.weights()?.iter().zip([&w1, &w3]) {
                    assert_eq!(error(back, weight)?, 0.0);
                }
            }
        }
        let (w1, w3) = (random(2, &[5, 4])?, random(3, &[5, 4])?);
        let (b1, b3) = (random(4, &[5])?, random(5, &[5])?);
        let gate = PackedSwiGlu::new(&w1, &w3)?.with_biases(&b1, &b3)?;
        let exact = |x: &[Tensor]| {
            let half = |w: &Tensor, b: &Tensor| {
                let dtype = x[0].dtype();
                plain_linear(&x[0], &w.to_dtype(dtype)?)?.broadcast_add(&b.to_dtype(dtype)?)
            };
            plain_silu(&half(&w1, &b1)?)? * half(&w3, &b3)?
        };
        let x = random(1, &[2, 3, 4])?;
        assert!(error(&gate.forward(&x)?, &exact(&[x.to_dtype(DType::F64)?])?)? < 1e-5);
        check_in(&[(DType::F32, 1e-5)], &[x], |x| gate.forward(&x[0]), exact)
    }

    #[test]
    fn weights_of_different_shapes_are_refused() -> Result<()> {
        let error = PackedSwiGlu::new(&random(1, &[24, 8])?, &random(2, &[8, 24])?).unwrap_err().to_string();
        assert!(error.contains("expected w3 of shape [24, 8]"), "{error}");
        let gate = PackedSwiGlu::new(&random(1, &[5, 4])?, &random(2, &[5, 4])?)?;
        let error = gate.with_biases(&random(3, &[5])?, &random(4, &[4])?).unwrap_err().to_string();
        assert!(error.contains("expected b3 of shape [5]"), "{error}");
        Ok(())
    }
}
