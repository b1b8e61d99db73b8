//! The first half of a gated MLP, its weights as products read them.

use std::fmt;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::cpu::gemm::{Left, Packed, Right, SwiGlu, collect, run};
use crate::cpu::storage::{self, with_slices};
use crate::packed_linear::{Factors, check_input, of_dtype};
use crate::swiglu::swiglu;

const NAME: &str = "packed_swiglu";

/// Two linear layers and the gate between them, which are not trained.
///
/// ```text
/// y = silu(x w1^T) * (x w3^T)
/// ```
///
/// One product computes both, and gates its tiles before they leave the registers' vicinity: neither factor is
/// written to memory. Sums are f32; in bf16 the result is rounded once.
/// Cloning is cheap.
#[derive(Clone)]
pub struct PackedSwiGlu {
    weights: Arc<Weights>,
}

struct Weights {
    packed: Factors,
    inputs: usize,
    outputs: usize,
}

impl PackedSwiGlu {
    /// Packs `w1` and `w3`, each (F, D), both f32 or both bf16.
    ///
    /// # Errors
    ///
    /// If a shape or a dtype is another, or if a tensor is not on the CPU.
    pub fn new(w1: &Tensor, w3: &Tensor) -> Result<Self> {
        let Ok((outputs, inputs)) = w1.dims2() else {
            bail!("{NAME}: expected w1 of shape (F, D), got {:?}", w1.shape());
        };
        if w3.dims() != w1.dims() || w3.dtype() != w1.dtype() {
            let (want, got) = (w1.dtype(), w3.dtype());
            bail!("{NAME}: expected w3 of {:?} in {want:?}, got {:?} in {got:?}", w1.shape(), w3.shape());
        }
        if !w1.device().is_cpu() || !w3.device().is_cpu() {
            bail!("{NAME}: expected weights on the CPU, got {:?}", w1.device().location());
        }
        let (w1, w3) = (w1.contiguous()?, w3.contiguous()?);
        let packed = of_dtype!(NAME, w1.dtype(), T => {
            with_slices!(T; w1, w3 => {
                Packed::pair(Right::columns(w1, inputs, outputs), Right::columns(w3, inputs, outputs)).into()
            })
        });
        Ok(Self { weights: Arc::new(Weights { packed, inputs, outputs }) })
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
    ///
    /// If the shape, the dtype or the device of `x` is another.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Weights { inputs, outputs, .. } = *self.weights;
        check_input(NAME, x, inputs, self.dtype())?;
        if !x.track_op() {
            return x.contiguous()?.apply_op1(self.clone());
        }
        let shape = with_last(x.dims(), outputs);
        let rows = x.reshape(((), inputs))?;
        let [a, b] = self.weights()?.map(|weight| rows.matmul(&weight.t()?));
        swiglu(&a?, &b?)?.reshape(shape)
    }

    /// The dtype of the weights.
    pub fn dtype(&self) -> DType {
        self.weights.packed.dtype()
    }

    /// `w1` and `w3` as they were: copies.
    ///
    /// # Errors
    ///
    /// If a tensor cannot be made.
    pub fn weights(&self) -> Result<[Tensor; 2]> {
        let Weights { ref packed, inputs, outputs } = *self.weights;
        let tensors = |[w1, w3]: [Result<Tensor>; 2]| Ok([w1?, w3?]);
        let shape = (outputs, inputs);
        match packed {
            Factors::F32(it) => {
                tensors(it.unpaired(outputs).map(|it| Tensor::from_vec(it, shape, &Device::Cpu)))
            }
            Factors::Bf16(it) => {
                tensors(it.unpaired(outputs).map(|it| Tensor::from_vec(it, shape, &Device::Cpu)))
            }
        }
    }

    pub(crate) fn factors(&self) -> &Factors {
        &self.weights.packed
    }

    /// D and F.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.weights.inputs, self.weights.outputs)
    }
}

/// `dims` with another last one.
fn with_last(dims: &[usize], last: usize) -> Vec<usize> {
    dims.iter().take(dims.len() - 1).copied().chain([last]).collect()
}

impl fmt::Debug for PackedSwiGlu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Weights { inputs, outputs, .. } = *self.weights;
        let mut debug = f.debug_struct("PackedSwiGlu");
        debug.field("inputs", &inputs).field("outputs", &outputs).field("dtype", &self.dtype()).finish()
    }
}

impl CustomOp1 for PackedSwiGlu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Weights { ref packed, inputs, outputs } = *self.weights;
        let shape = with_last(layout.dims(), outputs);
        let rows = layout.shape().elem_count() / inputs.max(1);
        let out = match packed {
            Factors::F32(packed) => {
                let left = Left::rows(storage::slice(x, layout)?, rows, inputs);
                storage::from_vec(collect(rows * outputs, |out| {
                    run(left, packed, &SwiGlu::<f32>::new(out, outputs))
                }))
            }
            Factors::Bf16(packed) => {
                let left = Left::rows(storage::slice(x, layout)?, rows, inputs);
                storage::from_vec(collect(rows * outputs, |out| {
                    run(left, packed, &SwiGlu::<half::bf16>::new(out, outputs));
                }))
            }
        };
        Ok((out, Shape::from(shape)))
    }
}
