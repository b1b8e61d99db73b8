//! Activations: SiLU, SiLU of a sum, and the gate of a SwiGLU layer.

use candle_core::{Result, Tensor};
use pulp::Simd;

use crate::cpu::element::Element;
use crate::cpu::exp::{silu as silu_lanes, silu_and_slope};
use crate::cpu::lanes::update;
use crate::cpu::pointwise::{Pointwise, Silu, SiluGradient, map};
use crate::modulated_rows::{RowGradient, RowInputs, RowOp};
use crate::modulation::Modulation;
use crate::op::{FusedOp, Gradient, apply, check_shape, dims_bld};

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
///
/// If the dtype is not f32, bf16 or f16.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    apply(SiluOp, x.shape(), [x])
}

struct SiluOp;

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
///
/// If shapes, dtypes or devices differ, or if the dtype is not f32, bf16 or f16.
pub fn swiglu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check_shape("swiglu", "b", b, a.dims())?;
    apply(SwiGluOp, a.shape(), [a, b])
}

struct SwiGluOp;

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
///
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
