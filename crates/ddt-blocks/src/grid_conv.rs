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
        // One more token, of zeros, stands for all beyond the edge.
        let padded = xs.pad_with_zeros(1, 0, 1)?; // (B, L + 1, D)
        let neighbours = Tensor::new(neighbours(rows, columns), xs.device())?; // (9 L)
        let gathered = padded.index_select(&neighbours, 1)?.reshape((b, l, 9 * d))?; // (B, L, 9 D)
        self.linear.forward(&gathered)
    }
}

/// For each token of a grid its nine neighbours, itself among them, row by row; `rows * columns` is none.
fn neighbours(rows: usize, columns: usize) -> Vec<u32> {
    let none = rows * columns;
    let at = |row: Option<usize>, column: Option<usize>| match (row, column) {
        (Some(row), Some(column)) if row < rows && column < columns => row * columns + column,
        _ => none,
    };
    let mut all = Vec::with_capacity(9 * none);
    for token in 0..none {
        for tap in 0..9 {
            let (row, column) = (token / columns + tap / 3, token % columns + tap % 3);
            all.push(at(row.checked_sub(1), column.checked_sub(1)) as u32);
        }
    }
    all
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

    #[test]
    fn beyond_the_edge_there_is_nothing() {
        assert_eq!(neighbours(1, 2), [2, 2, 2, 2, 0, 1, 2, 2, 2, 2, 2, 2, 0, 1, 2, 2, 2, 2]);
        assert_eq!(neighbours(3, 3)[4 * 9..5 * 9], [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
