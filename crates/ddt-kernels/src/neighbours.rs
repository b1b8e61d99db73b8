//! The 3 x 3 surroundings of each place of a grid, which turn a convolution into a linear layer.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::anywhere::Anywhere;
use crate::cpu::element::Element;
use crate::op::{FusedOp, Gradient, apply};
use crate::plain;

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
/// Another number of axes, or a dtype that is not f32, bf16 or f16.
pub fn neighbours(x: &Tensor) -> Result<Tensor> {
    let Ok((b, rows, columns, d)) = x.dims4() else {
        bail!("{NAME}: expected x of shape (B, R, C, D), got {:?}", x.dims());
    };
    apply(Neighbours { rows, columns, d }, (b, rows, columns, 9 * d), [x])
}

/// Sizes of an image.
#[derive(Debug, Clone, Copy)]
struct Neighbours {
    rows: usize,
    columns: usize,
    d: usize,
}

impl Anywhere<1> for Neighbours {
    fn plain(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        plain::neighbours(x)
    }
}

impl<T: Element> FusedOp<T, 1> for Neighbours {
    const NAME: &'static str = NAME;
    const INPUTS: [&'static str; 1] = ["x"];

    fn forward(&self, [x]: [&[T]; 1]) -> Vec<T> {
        let Self { columns, d, .. } = *self;
        let mut out = vec![T::zero(); 9 * x.len()];
        out.par_chunks_mut((columns * 9 * d).max(1)).enumerate().for_each(|(row, out)| {
            for (column, out) in out.chunks_mut(9 * d).enumerate() {
                for (tap, out) in out.chunks_mut(d).enumerate() {
                    if let Some(place) = self.place(row, column, tap) {
                        out.copy_from_slice(&x[place * d..][..d]);
                    }
                }
            }
        });
        out
    }

    fn backward(&self, _: [&[T]; 1], grad: &[T], _: [bool; 1]) -> [Gradient<T>; 1] {
        let Self { columns, d, .. } = *self;
        let mut out = vec![T::zero(); grad.len() / 9];
        out.par_chunks_mut((columns * d).max(1)).enumerate().for_each(|(row, out)| {
            let (mut sum, mut wide) = (vec![0f32; d], vec![0f32; d]);
            for (column, out) in out.chunks_mut(d).enumerate() {
                sum.fill(0.0);
                for tap in 0..9 {
                    // The neighbour at tap 8 - t sees this place at its tap t.
                    if let Some(place) = self.place(row, column, 8 - tap) {
                        T::widen(&grad[(place * 9 + tap) * d..][..d], &mut wide);
                        sum.iter_mut().zip(&wide).for_each(|(sum, x)| *sum += x);
                    }
                }
                T::narrow(&sum, out);
            }
        });
        [Gradient::Of(out)]
    }
}

impl Neighbours {
    /// The neighbour at `tap`, counted row by row through the 3 x 3 window, over the whole batch; `None` outside.
    fn place(self, row: usize, column: usize, tap: usize) -> Option<usize> {
        let (image, r) = (row / self.rows, row % self.rows);
        let (r, c) = ((r + tap / 3).checked_sub(1)?, (column + tap % 3).checked_sub(1)?);
        let inside = r < self.rows && c < self.columns;
        inside.then_some((image * self.rows + r) * self.columns + c)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::testing::filled;

    #[test]
    fn values_and_gradients_are_those_of_shifted_copies() {
        for shape in [(2, 4, 5, 3), (1, 1, 1, 2), (3, 1, 4, 1), (1, 7, 2, 8), (0, 2, 2, 2), (1, 2, 2, 0)] {
            let x = Var::from_tensor(&filled(shape, 0.0)).unwrap();
            let (got, want) = (neighbours(&x).unwrap(), plain::neighbours(&x).unwrap());
            let list = |it: &Tensor| it.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(got.dims(), want.dims());
            assert_eq!(list(&got), list(&want), "{shape:?}");
            if x.elem_count() == 0 {
                continue;
            }
            let weight = filled(got.dims(), 0.0);
            let gradient = |it: Tensor| {
                let sum = (it * &weight).unwrap().sum_all().unwrap();
                list(sum.backward().unwrap().get(&x).unwrap())
            };
            for (got, want) in gradient(got).iter().zip(gradient(want)) {
                assert!((got - want).abs() < 1e-5, "{shape:?}: {got}, expected {want}");
            }
        }
        assert!(neighbours(&filled((1, 2, 2, 2), 0.0).squeeze(0).unwrap()).is_err());
    }
}
