//! A 3 x 3 convolution on the grid of tokens.

use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

use crate::linear::Linear;

/// Each token becomes a linear function of itself and its eight neighbours; beyond the edge all is zero.
///
/// ```text
/// y[r, c] = b + sum over i, j in 0 .. 3 of W[i, j] x[r + i - 1, c + j - 1]
/// ```
///
/// Computed as one product on gathered neighbours. The weight is `(D, 9 D)`, its columns ordered row offset,
/// column offset, channel: a PyTorch `nn.Conv2d` weight `(D, D, 3, 3)` permuted by `(0, 2, 3, 1)`.
#[derive(Debug, Clone)]
pub struct GridConv {
    linear: Linear,
}

impl GridConv {
    /// Parameters `weight` and `bias`, initialised as PyTorch's `nn.Conv2d`.
    pub fn new(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        // The bound of PyTorch's convolution is that of its linear layer of equal fan-in.
        Ok(Self { linear: Linear::new(9 * hidden_size, hidden_size, vb)? })
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`; `grid` is the tokens' `(rows, columns)`, row by row.
    ///
    /// # Errors
    /// When the tokens do not fill the grid.
    pub fn forward(&self, xs: &Tensor, grid: (usize, usize)) -> Result<Tensor> {
        let (b, l, d) = xs.dims3()?;
        let (rows, columns) = grid;
        if rows.checked_mul(columns) != Some(l) {
            bail!("expected tokens of a {rows} x {columns} grid, got {l}");
        }
        let gathered = ddt_kernels::neighbours(&xs.reshape((b, rows, columns, d))?)?; // (B, R, C, 9 D)
        self.linear.forward(&gathered.reshape((b, l, 9 * d))?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    use super::*;

    #[test]
    fn is_the_convolution() -> Result<()> {
        let map = VarMap::new();
        let (d, rows, columns) = (4, 3, 5);
        let conv = GridConv::new(d, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
        let xs = Tensor::arange(0f32, (2 * d * rows * columns) as f32, &Device::Cpu)?.sin()?;
        let image = xs.reshape((2, d, rows, columns))?;
        let tokens = image.flatten_from(2)?.transpose(1, 2)?.contiguous()?; // (B, L, D)
        let got = conv.forward(&tokens, (rows, columns))?;
        let weight = conv.linear.weight().reshape((d, 3, 3, d))?.permute((0, 3, 1, 2))?.contiguous()?;
        let want = image.conv2d(&weight, 1, 1, 1, 1)?;
        let bias = map.data().lock().unwrap()["bias"].reshape((1, d, 1, 1))?;
        let want = want.broadcast_add(&bias)?.flatten_from(2)?.transpose(1, 2)?;
        assert!((got - want)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
        assert!(conv.forward(&tokens, (5, 5)).is_err());
        Ok(())
    }
}
