//! Activations: SiLU, SiLU of a sum, and the gate of a SwiGLU layer.

use candle_core::{Result, Tensor};
use pulp::Simd;

use crate::anywhere::Anywhere;
use crate::cpu::element::Element;
use crate::cpu::exp::{silu as silu_lanes, silu_and_slope};
use crate::cpu::lanes::update;
use crate::cpu::pointwise::{Pointwise, Silu, SiluGradient, map};
#[cfg(feature = "candle-cuda")]
use crate::cuda::{self, Cuda, Slice};
#[cfg(feature = "candle-cuda")]
use crate::gpu::View;
use crate::modulated_rows::{RowGradient, RowInputs, RowOp};
use crate::modulation::Modulation;
use crate::op::{FusedOp, Gradient, apply, check_shape, dims_bld};
use crate::plain;

/// The sigmoid linear unit.
///
/// ```text
/// y = x / (1 + exp(-x))
/// ```
///
/// Differentiable; computed in f32; the result has the dtype of `x`.
/// At minus infinity the quotient is undefined and the result is NaN.
///
/// # Shapes
///
/// `x`: any; result: the same.
///
/// # Errors
/// If the dtype is not f32, bf16 or f16.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    apply(SiluOp, x.shape(), [x])
}

struct SiluOp;

impl Anywhere<1> for SiluOp {
    fn plain(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        plain::silu(x)
    }

    #[cfg(feature = "candle-cuda")]
    fn fits<T: cuda::Float>(&self, dims: &[usize]) -> bool {
        dims.iter().product::<usize>().is_multiple_of(T::LANES)
    }

    #[cfg(feature = "candle-cuda")]
    fn launch<T: cuda::Float>(&self, cuda: &Cuda, [x]: &[View<T>; 1], out: &Slice<T>) -> cuda::Result<()> {
        let (x, activation) = (&x.slice, cuda::Activation::Silu);
        cuda.add_rows(&cuda::AddRows { x, width: T::LANES, addend: None, activation, out })
    }
}

impl<T: Element> FusedOp<T, 1> for SiluOp {
    const NAME: &'static str = "silu";
    const INPUTS: [&'static str; 1] = ["x"];

    fn forward(&self, inputs: [&[T]; 1]) -> Vec<T> {
        let [out] = map(Silu, inputs);
        out
    }

    fn backward(&self, [x]: [&[T]; 1], grad: &[T], _: [bool; 1]) -> [Gradient<T>; 1] {
        map(SiluGradient, [x, grad]).map(Gradient::Of)
    }
}

/// The gate of a SwiGLU feed-forward layer.
///
/// ```text
/// out = a / (1 + exp(-a)) * b
/// ```
///
/// Differentiable in both tensors; computed in f32; the result has the dtype of `a`.
///
/// # Shapes
///
/// `a`, `b`: any, but equal; result: the same.
///
/// # Errors
/// If shapes, dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn swiglu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check_shape("swiglu", "b", b, a.dims())?;
    apply(SwiGluOp, a.shape(), [a, b])
}

struct SwiGluOp;

impl Anywhere<2> for SwiGluOp {
    fn plain(&self, [a, b]: [&Tensor; 2]) -> Result<Tensor> {
        plain::silu(a)? * b
    }

    #[cfg(feature = "candle-cuda")]
    fn fits<T: cuda::Float>(&self, _: &[usize]) -> bool {
        true
    }

    #[cfg(feature = "candle-cuda")]
    fn launch<T: cuda::Float>(&self, cuda: &Cuda, [a, b]: &[View<T>; 2], out: &Slice<T>) -> cuda::Result<()> {
        // Rows of 16 bytes where the elements are that many, whatever the tensor's are.
        let width = if out.len().is_multiple_of(T::LANES) { T::LANES } else { 1 };
        cuda.swiglu_of_two([&a.slice, &b.slice], width, out)
    }
}

impl<T: Element> FusedOp<T, 2> for SwiGluOp {
    const NAME: &'static str = "swiglu";
    const INPUTS: [&'static str; 2] = ["a", "b"];

    fn forward(&self, inputs: [&[T]; 2]) -> Vec<T> {
        swiglu_forward(inputs)
    }

    fn backward(&self, inputs: [&[T]; 2], grad: &[T], _: [bool; 2]) -> [Gradient<T>; 2] {
        swiglu_backward(inputs, grad).map(Gradient::Of)
    }
}

/// `silu(a) * b`.
pub(crate) fn swiglu_forward<T: Element>(inputs: [&[T]; 2]) -> Vec<T> {
    let [out] = map(Gate, inputs);
    out
}

/// Gradients of `a` and `b`.
pub(crate) fn swiglu_backward<T: Element>([a, b]: [&[T]; 2], grad: &[T]) -> [Vec<T>; 2] {
    map(Gate, [a, b, grad])
}

#[derive(Clone, Copy)]
struct Gate;

impl Pointwise<2, 1> for Gate {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, [a, b]: [S::f32s; 2]) -> [S::f32s; 1] {
        [simd.mul_f32s(silu_lanes(simd, a), b)]
    }
}

impl Pointwise<3, 2> for Gate {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, [a, b, grad]: [S::f32s; 3]) -> [S::f32s; 2] {
        let (value, slope) = silu_and_slope(simd, a);
        [simd.mul_f32s(simd.mul_f32s(grad, b), slope), simd.mul_f32s(grad, value)]
    }
}

/// SiLU of a sum, such as the self-condition `z_t = silu(t_emb + encoder output)` of arXiv:2504.05741.
///
/// ```text
/// s = x + t;  out = s / (1 + exp(-s))
/// ```
///
/// Differentiable in both tensors; computed in f32; the result has the dtype of `x`.
///
/// # Shapes
///
/// `x`: (B, L, D), `t`: (B, 1, D) or (B, L, D); result: (B, L, D).
///
/// # Errors
/// If a shape is another, if dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn add_silu(x: &Tensor, t: &Tensor) -> Result<Tensor> {
    let (b, l, d) = dims_bld("add_silu", x)?;
    let modulation = Modulation::new("add_silu", "t", &t.into(), (b, l), d)?;
    apply(AddSilu { width: d, modulation }, x.shape(), [x, t])
}

struct AddSilu {
    width: usize,
    modulation: Modulation,
}

impl AddSilu {
    fn rows<'a, T, const N: usize>(&self, inputs: [&'a [T]; N], values: &'a [T]) -> RowInputs<'a, T, N> {
        RowInputs { inputs, width: self.width, values: values.into(), modulation: self.modulation }
    }
}

impl Anywhere<2> for AddSilu {
    fn plain(&self, [x, t]: [&Tensor; 2]) -> Result<Tensor> {
        plain::silu(&x.broadcast_add(t)?)
    }

    #[cfg(feature = "candle-cuda")]
    const SPACED: Option<usize> = Some(1);

    #[cfg(feature = "candle-cuda")]
    fn fits<T: cuda::Float>(&self, _: &[usize]) -> bool {
        self.width.is_multiple_of(T::LANES)
    }

    #[cfg(feature = "candle-cuda")]
    fn launch<T: cuda::Float>(&self, cuda: &Cuda, [x, t]: &[View<T>; 2], out: &Slice<T>) -> cuda::Result<()> {
        let (addend, activation) = (Some(self.modulation.rows_of(t)), cuda::Activation::Silu);
        cuda.add_rows(&cuda::AddRows { x: &x.slice, width: self.width, addend, activation, out })
    }
}

impl<T: Element> FusedOp<T, 2> for AddSilu {
    const NAME: &'static str = "add_silu";
    const INPUTS: [&'static str; 2] = ["x", "t"];

    fn forward(&self, [x, t]: [&[T]; 2]) -> Vec<T> {
        self.rows([x], t).map(self)
    }

    fn backward(&self, [x, t]: [&[T]; 2], grad: &[T], _: [bool; 2]) -> [Gradient<T>; 2] {
        let mut partials = self.modulation.partials();
        let (grad_x, _) = self.rows([x, grad], t).gradients(self, 0, &mut partials);
        [Gradient::Of(grad_x), Gradient::Of(self.modulation.gradient(partials))]
    }
}

impl RowOp<1> for AddSilu {
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, [x]: [&[f32]; 1], t: &[f32], out: &mut [f32]) {
        update(
            simd,
            [out],
            [x, t],
            #[inline(always)]
            |_, [x, t]| [silu_lanes(simd, simd.add_f32s(x, t))],
        );
    }
}

impl RowGradient<2> for AddSilu {
    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        [x, grad]: [&[f32]; 2],
        t: &[f32],
        out: &mut [f32],
        grad_t: &mut [f32],
        _grad_weight: &mut [f32],
    ) {
        update(
            simd,
            [out, grad_t],
            [x, t, grad],
            #[inline(always)]
            |[_, sum], [x, t, grad]| {
                let slope = silu_and_slope(simd, simd.add_f32s(x, t)).1;
                let grad = simd.mul_f32s(grad, slope);
                [grad, simd.add_f32s(sum, grad)]
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::{EMPTY, check, error, plain_silu, random, refused, run, zeros};

    #[test]
    fn silu_matches() -> Result<()> {
        for shape in [&[1][..], &[3, 5, 7], &[1025], &[2, 20_000]] {
            check(&[random(1, shape)?], |x| silu(&x[0]), |x| plain_silu(&x[0]))?;
        }
        Ok(())
    }

    #[test]
    fn swiglu_matches() -> Result<()> {
        for shape in [&[1][..], &[3, 5, 7], &[40_001]] {
            let inputs = [random(1, shape)?, random(2, shape)?];
            check(&inputs, |x| swiglu(&x[0], &x[1]), |x| plain_silu(&x[0])? * &x[1])?;
        }
        Ok(())
    }

    #[test]
    fn add_silu_matches() -> Result<()> {
        for (b, l, d) in [(2, 5, 24), (3, 1, 7), (2, 130, 33)] {
            for t_rows in [1, l] {
                let inputs = [random(1, &[b, l, d])?, random(2, &[b, t_rows, d])?];
                check(&inputs, |x| add_silu(&x[0], &x[1]), |x| plain_silu(&x[0].broadcast_add(&x[1])?))?;
            }
        }
        Ok(())
    }

    #[test]
    fn extreme_arguments_have_their_limits() -> Result<()> {
        let x = [100.0f32, -100.0, 3e38, -3e38, f32::INFINITY, 0.0, f32::NAN, f32::NEG_INFINITY];
        let y = silu(&Tensor::new(&x, &Device::Cpu)?)?.to_vec1::<f32>()?;
        assert_eq!(y[..6], [100.0, 0.0, 3e38, 0.0, f32::INFINITY, 0.0]);
        assert!(y[6].is_nan() && y[7].is_nan(), "{y:?}");
        Ok(())
    }

    #[test]
    fn gradient_of_silu_agrees_with_finite_differences() -> Result<()> {
        let x = random(3, &[200])?.affine(4.0, 0.0)?;
        let (_, grads) = run(std::slice::from_ref(&x), |x| silu(&x[0])?.sum_all())?;
        let h = 0.01;
        let slope = ((silu(&(&x + h)?)? - silu(&(&x - h)?)?)? / (2.0 * h))?;
        // The weighting of a scalar result is one fixed number.
        let weight = random(99, &[])?.to_dtype(DType::BF16)?.to_dtype(x.dtype())?;
        let found = error(&grads[0], &slope.broadcast_mul(&weight)?)?;
        // Differences of f32 values at distance 0.02 carry about 1e-4.
        assert!(found < 1e-3, "error {found:e}");
        Ok(())
    }

    #[test]
    fn wrong_arguments_are_refused_and_empty_tensors_are_fine() -> Result<()> {
        let x = zeros(&[2, 3, 4])?;
        refused(add_silu(&x, &zeros(&[2, 4])?), "expected t of shape (2, 1, 4)");
        refused(swiglu(&x, &zeros(&[2, 12])?), "expected b of shape [2, 3, 4]");
        refused(silu(&x.to_dtype(DType::F64)?), "expected x in f32, bf16 or f16, got F64");
        let half = zeros(&[2, 1, 4])?.to_dtype(DType::F16)?;
        refused(add_silu(&x, &half), "expected t in the dtype of x, F32, got F16");
        for (b, l, d) in EMPTY {
            run(&[zeros(&[b, l, d])?, zeros(&[b, 1, d])?], |x| add_silu(&x[0], &x[1]))?;
            run(&[zeros(&[b, l, d])?], |x| silu(&x[0]))?;
        }
        Ok(())
    }
}
