//! A linear layer.

use candle_core::{DType, Result, Shape, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use crate::cpu::element::Element;
use crate::cpu::gemm::{ASource, Matrix, PackedB, matmul, matmul_add};
use crate::cpu::rows::sum_rows;
use crate::op::{Gradient, WeightedOp, apply_weighted, check_shape, with_last};
use crate::packed_linear::Packable;

const NAME: &str = "linear";

/// A linear layer.
///
/// ```text
/// y = x weight^T + bias
/// ```
///
/// Differentiable in all tensors; on the CPU only.
/// `x` is f32 or bf16, and so are the result and all gradients that flow through the layer. The weights are f32, as
/// are their gradients: with a bf16 `x`, all three GEMMs multiply bf16 and sum f32, and the weight is rounded where they
/// read it.
///
/// # Shapes
///
/// `x`: (.., K), `weight`: (N, K), `bias`: (N); result: (.., N).
///
/// # Errors
/// If a shape or a dtype is another, or if a tensor is not on the CPU.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let Ok((outputs, inputs)) = weight.dims2() else {
        bail!("{NAME}: expected weight of shape (N, K), got {:?}", weight.shape());
    };
    let Some((&last, leading)) = x.dims().split_last().filter(|(last, _)| **last == inputs) else {
        bail!("{NAME}: expected x of shape (.., {inputs}), got {:?}", x.shape());
    };
    let shape = Shape::from(with_last(x.dims(), outputs));
    let op = Linear { rows: leading.iter().product(), inputs: last, outputs };
    if let Some(bias) = bias {
        check_shape(NAME, "bias", bias, &[outputs])?;
    }
    match x.dtype() {
        DType::F32 => op.apply_to::<f32>(shape, x, weight, bias),
        DType::BF16 => op.apply_to::<bf16>(shape, x, weight, bias),
        other => bail!("{NAME}: expected x in f32 or bf16 on the CPU, got {other:?}"),
    }
}

/// Sizes of a layer and its input, and the layer's passes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linear {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl<T: Packable> WeightedOp<T, 1, 1> for Linear {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 1] = ["x"];
    const WEIGHTS: [&'static str; 1] = ["weight"];

    fn forward(&self, [x]: [&[T]; 1], [weight]: [&[f32]; 1]) -> Vec<T> {
        self.apply(x, weight, None)
    }

    fn backward(
        &self,
        [x]: [&[T]; 1],
        [weight]: [&[f32]; 1],
        grad: &[T],
        [wanted]: [bool; 1],
    ) -> ([Gradient<T>; 1], [Vec<f32>; 1]) {
        let grad_x = if wanted { Gradient::Of(self.grad_x(weight, grad)) } else { Gradient::Unwanted };
        ([grad_x], [self.grad_weight(&self.pack(x), grad)])
    }
}

impl<T: Packable> WeightedOp<T, 1, 2> for Linear {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 1] = ["x"];
    const WEIGHTS: [&'static str; 2] = ["weight", "bias"];

    fn forward(&self, [x]: [&[T]; 1], [weight, bias]: [&[f32]; 2]) -> Vec<T> {
        self.apply(x, weight, Some(bias))
    }

    fn backward(
        &self,
        x: [&[T]; 1],
        [weight, _]: [&[f32]; 2],
        grad: &[T],
        wanted: [bool; 1],
    ) -> ([Gradient<T>; 1], [Vec<f32>; 2]) {
        let (grad_x, [grad_weight]) = WeightedOp::backward(self, x, [weight], grad, wanted);
        (grad_x, [grad_weight, self.grad_bias(grad)])
    }
}

impl Linear {
    fn apply_to<T: Packable>(
        self,
        shape: Shape,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        match bias {
            None => apply_weighted::<T, _, 1, 1>(self, shape, [x], [weight]),
            Some(bias) => apply_weighted::<T, _, 1, 2>(self, shape, [x], [weight, bias]),
        }
    }

    /// `x weight^T + bias`, (rows, outputs).
    pub(crate) fn apply<T: Packable>(self, x: &[T], weight: &[f32], bias: Option<&[f32]>) -> Vec<T> {
        let Self { rows, inputs, outputs } = self;
        let weight = PackedB::rounded(Matrix::transposed(weight, inputs, outputs));
        matmul(ASource::rows(x, rows, inputs), &weight, bias)
    }

    /// The gradient of `x`, `grad weight`.
    pub(crate) fn grad_x<T: Packable, C: Element>(self, weight: &[f32], grad: &[T]) -> Vec<C> {
        let Self { rows, inputs, outputs } = self;
        let weight = PackedB::rounded(Matrix::new(weight, outputs, inputs));
        matmul(ASource::rows(grad, rows, outputs), &weight, None)
    }

    /// Adds the gradient of `x` to `sum`.
    pub(crate) fn add_grad_x<T: Packable>(self, weight: &[f32], grad: &[T], sum: &mut [f32]) {
        let Self { rows, inputs, outputs } = self;
        let weight = PackedB::rounded(Matrix::new(weight, outputs, inputs));
        matmul_add(ASource::rows(grad, rows, outputs), &weight, sum);
    }

    /// `x` as [`grad_weight`](Self::grad_weight) reads it.
    pub(crate) fn pack<T: Packable>(self, x: &[T]) -> PackedB<T> {
        PackedB::temporary(Matrix::new(x, self.rows, self.inputs))
    }

    /// The gradient of `weight`, `grad^T x`.
    pub(crate) fn grad_weight<T: Packable>(self, x: &PackedB<T>, grad: &[T]) -> Vec<f32> {
        let Self { rows, outputs, .. } = self;
        matmul(ASource::Matrix(Matrix::transposed(grad, outputs, rows)), x, None)
    }

    /// The gradient of `bias`: the sums of the columns of `grad`.
    pub(crate) fn grad_bias<T: Packable>(self, grad: &[T]) -> Vec<f32> {
        /// Rows of one partial sum.
        const TASK_ROWS: usize = 128;
        let width = self.outputs;
        if width == 0 {
            return Vec::new();
        }
        let partial: Vec<Vec<f32>> =
            grad.par_chunks(TASK_ROWS * width).map(|rows| sum_rows(rows, width)).collect();
        sum_rows(&partial.concat(), width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_weighted, error, plain_linear, random, refused, run};

    /// In bf16, one rounding of the result and of each gradient.
    const DTYPES: [(DType, f64); 2] = [(DType::F32, 1e-5), (DType::BF16, 4e-3)];

    #[test]
    fn matches_for_all_kinds_of_sizes() -> Result<()> {
        for (b, l, inputs, outputs) in [
            (1, 1, 1, 1),
            (2, 16, 24, 40),
            (1, 3, 700, 5),
            (3, 50, 33, 64),
            (1, 15, 64, 130),
            (3, 900, 48, 70),
        ] {
            let tensors =
                [random(1, &[b, l, inputs])?, random(2, &[outputs, inputs])?, random(3, &[outputs])?];
            check_weighted(
                &DTYPES,
                1,
                &tensors[..2],
                |x| linear(&x[0], &x[1], None),
                |x| plain_linear(&x[0], &x[1]),
            )?;
            check_weighted(
                &DTYPES,
                1,
                &tensors,
                |x| linear(&x[0], &x[1], Some(&x[2])),
                |x| plain_linear(&x[0], &x[1])?.broadcast_add(&x[2]),
            )?;
        }
        Ok(())
    }

    #[test]
    fn any_number_of_leading_axes_and_any_strides_do() -> Result<()> {
        let inputs = [random(1, &[4, 6])?, random(2, &[4, 3])?];
        let (out, grads) = run(&inputs, |x| linear(&x[0].t()?, &x[1].t()?, None))?;
        assert_eq!(out.dims(), [6, 3]);
        let (want, want_grads) = run(&inputs, |x| x[0].t()?.matmul(&x[1]))?;
        assert!(error(&out, &want)? < 1e-6);
        for (grad, want) in grads.iter().zip(&want_grads) {
            assert!(error(grad, want)? < 1e-6);
        }
        let vector = linear(&random(1, &[4])?, &random(2, &[3, 4])?, None)?;
        assert_eq!(vector.dims(), [3]);
        let empty = linear(&Tensor::zeros((0, 4), DType::F32, out.device())?, &random(2, &[3, 4])?, None)?;
        assert_eq!(empty.dims(), [0, 3]);
        Ok(())
    }

    #[test]
    fn an_input_that_nothing_depends_on_gets_no_gradient() -> Result<()> {
        let x = random(1, &[2, 4])?;
        let weight = candle_core::Var::from_tensor(&random(2, &[3, 4])?)?;
        let grads = linear(&x, weight.as_tensor(), None)?.sum_all()?.backward()?;
        assert!(grads.get(&x).is_none() && grads.get(&weight).is_some());
        Ok(())
    }

    #[test]
    fn wrong_arguments_are_refused() -> Result<()> {
        let (x, weight) = (random(1, &[2, 4])?, random(2, &[5, 4])?);
        refused(linear(&x, &weight.t()?, None), "expected x of shape (.., 5), got [2, 4]");
        refused(linear(&x, &weight, Some(&x)), "expected bias of shape [5], got [2, 4]");
        refused(
            linear(&x.to_dtype(DType::F16)?, &weight, None),
            "expected x in f32 or bf16 on the CPU, got F16",
        );
        refused(
            linear(&x, &weight.to_dtype(DType::BF16)?, None),
            "expected weight in f32 on the CPU, got BF16",
        );
        Ok(())
    }
}
