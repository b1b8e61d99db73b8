//! Each place of a grid with the eight around it: what makes a convolution a linear layer.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::cpu::element::by_dtype;
use crate::cpu::neighbours::{Grid, backward, forward};
use crate::cpu::storage::{self, with_slices};

const NAME: &str = "neighbours";

/// The 3 x 3 surroundings of each place, side by side; beyond the edge all is zero.
///
/// ```text
/// y[r, c] = [x[r - 1, c - 1], x[r - 1, c], x[r - 1, c + 1], x[r, c - 1], .., x[r + 1, c + 1]]
/// ```
///
/// A linear layer on the result is a 3 x 3 convolution with padding 1. Differentiable; the result has the
/// dtype of `x`.
///
/// # Shapes
///
/// `x: (B, R, C, D)`, rows and columns before channels; `-> (B, R, C, 9 D)`.
///
/// # Errors
///
/// Another number of axes, or a dtype that is not f32, bf16 or f16.
pub fn neighbours(x: &Tensor) -> Result<Tensor> {
    if x.dims().len() != 4 {
        bail!("{NAME}: expected x of shape (B, R, C, D), got {:?}", x.dims());
    }
    x.contiguous()?.apply_op1(Neighbours)
}

struct Neighbours;

impl CustomOp1 for Neighbours {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, rows, columns, d) = layout.shape().dims4()?;
        let grid = Grid { rows, columns, d };
        by_dtype!(NAME, storage::dtype(x), T => {
            let x = storage::slice::<T>(x, layout)?;
            Ok((storage::from_vec(forward(x, grid)), (b, rows, columns, 9 * d).into()))
        })
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, rows, columns, d) = x.dims4()?;
        let grid = Grid { rows, columns, d };
        let grad = grad.contiguous()?;
        by_dtype!(NAME, x.dtype(), T => {
            let grad_x = with_slices!(T; grad => backward(grad, grid));
            Ok(Some(Tensor::from_vec(grad_x, x.shape(), x.device())?))
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn filled(shape: (usize, usize, usize, usize)) -> Tensor {
        let (a, b, c, d) = shape;
        let values: Vec<f32> = (0..a * b * c * d).map(|it| (it as f32 * 0.7).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// The same of plain operations.
    fn plain(x: &Tensor) -> Tensor {
        let (_, rows, columns, _) = x.dims4().unwrap();
        let padded = x.pad_with_zeros(1, 1, 1).unwrap().pad_with_zeros(2, 1, 1).unwrap();
        let tap = |i: usize| padded.narrow(1, i / 3, rows).unwrap().narrow(2, i % 3, columns).unwrap();
        Tensor::cat(&(0..9).map(tap).collect::<Vec<_>>(), 3).unwrap()
    }

    #[test]
    fn values_and_gradients_are_those_of_shifted_copies() {
        for shape in [(2, 4, 5, 3), (1, 1, 1, 2), (3, 1, 4, 1), (1, 7, 2, 8), (0, 2, 2, 2), (1, 2, 2, 0)] {
            let x = Var::from_tensor(&filled(shape)).unwrap();
            let (got, want) = (neighbours(&x).unwrap(), plain(&x));
            let list = |it: &Tensor| it.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(got.dims(), want.dims());
            assert_eq!(list(&got), list(&want), "{shape:?}");
            if x.elem_count() == 0 {
                continue;
            }
            let weight = filled(got.dims4().unwrap());
            let gradient = |it: Tensor| {
                let sum = (it * &weight).unwrap().sum_all().unwrap();
                list(sum.backward().unwrap().get(&x).unwrap())
            };
            for (got, want) in gradient(got).iter().zip(gradient(want)) {
                assert!((got - want).abs() < 1e-5, "{shape:?}: {got}, expected {want}");
            }
        }
        assert!(neighbours(&filled((1, 2, 2, 2)).squeeze(0).unwrap()).is_err());
    }
}
