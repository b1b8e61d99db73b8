//! A linear layer.

use candle_core::{Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::gemm::{ASource, Matrix, PackedB, matmul, matmul_add};
use crate::cpu::rows::sum_rows;
use crate::op::{FusedOp, Gradient, apply_f32, check_shape, with_last};

const NAME: &str = "linear";

/// A linear layer.
///
/// ```text
/// y = x weight^T + bias
/// ```
///
/// Differentiable in all tensors; f32 on the CPU only.
///
/// # Shapes
///
/// `x`: (.., K), `weight`: (N, K), `bias`: (N); result: (.., N).
///
/// # Errors
///
/// If a shape is another, or if a tensor is not f32 on the CPU.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let Ok((outputs, inputs)) = weight.dims2() else {
        bail!("{NAME}: expected weight of shape (N, K), got {:?}", weight.shape());
    };
    let Some((&last, leading)) = x.dims().split_last().filter(|(last, _)| **last == inputs) else {
        bail!("{NAME}: expected x of shape (.., {inputs}), got {:?}", x.shape());
    };
    let shape = Shape::from(with_last(x.dims(), outputs));
    let op = Linear { rows: leading.iter().product(), inputs: last, outputs };
    match bias {
        None => apply_f32(op, shape, [x, weight]),
        Some(bias) => {
            check_shape(NAME, "bias", bias, &[outputs])?;
            apply_f32(op, shape, [x, weight, bias])
        }
    }
}

/// Sizes of a layer and its input, and the layer's passes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linear {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl FusedOp<f32, 2> for Linear {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 2] = ["x", "weight"];

    fn forward(&self, [x, weight]: [&[f32]; 2]) -> Vec<f32> {
        self.apply(x, weight, None)
    }

    fn backward(&self, [x, weight]: [&[f32]; 2], grad: &[f32], wanted: [bool; 2]) -> [Gradient<f32>; 2] {
        let grad_x = || Gradient::Of(self.grad_x(weight, grad));
        [if wanted[0] { grad_x() } else { Gradient::Unwanted }, Gradient::Of(self.grad_weight(x, grad))]
    }
}

impl FusedOp<f32, 3> for Linear {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 3] = ["x", "weight", "bias"];

    fn forward(&self, [x, weight, bias]: [&[f32]; 3]) -> Vec<f32> {
        self.apply(x, weight, Some(bias))
    }

    fn backward(&self, [x, weight, _]: [&[f32]; 3], grad: &[f32], wanted: [bool; 3]) -> [Gradient<f32>; 3] {
        let [a, b] = self.backward([x, weight], grad, [wanted[0], wanted[1]]);
        [a, b, Gradient::Of(self.grad_bias(grad))]
    }
}

impl Linear {
    /// `x weight^T + bias`, (rows, outputs).
    pub(crate) fn apply(self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let Self { rows, inputs, outputs } = self;
        let weight = PackedB::temporary(Matrix::transposed(weight, inputs, outputs));
        matmul(ASource::rows(x, rows, inputs), &weight, bias)
    }

    /// The gradient of `x`, `grad weight`.
    pub(crate) fn grad_x(self, weight: &[f32], grad: &[f32]) -> Vec<f32> {
        let Self { rows, inputs, outputs } = self;
        let weight = PackedB::temporary(Matrix::new(weight, outputs, inputs));
        matmul(ASource::rows(grad, rows, outputs), &weight, None)
    }

    /// Adds the gradient of `x` to `sum`.
    pub(crate) fn add_grad_x(self, weight: &[f32], grad: &[f32], sum: &mut [f32]) {
        let Self { rows, inputs, outputs } = self;
        let weight = PackedB::temporary(Matrix::new(weight, outputs, inputs));
        matmul_add(ASource::rows(grad, rows, outputs), &weight, sum);
    }

    /// The gradient of `weight`, `grad^T x`.
    pub(crate) fn grad_weight(self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        let Self { rows, inputs, outputs } = self;
        let x = PackedB::temporary(Matrix::new(x, rows, inputs));
        matmul(ASource::Matrix(Matrix::transposed(grad, outputs, rows)), &x, None)
    }

    /// The gradient of `bias`: the sums of the columns of `grad`.
    pub(crate) fn grad_bias(self, grad: &[f32]) -> Vec<f32> {
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
    use candle_core::DType;

    use super::*;
    use crate::testing::{check_in, error, plain_linear, random, refused, run};

    const F32: [(DType, f64); 1] = [(DType::F32, 1e-5)];

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
            check_in(&F32, &tensors[..2], |x| linear(&x[0], &x[1], None), |x| plain_linear(&x[0], &x[1]))?;
            check_in(
                &F32,
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
        refused(linear(&x.to_dtype(DType::BF16)?, &weight.to_dtype(DType::BF16)?, None), "expected x in f32");
        Ok(())
    }
}
