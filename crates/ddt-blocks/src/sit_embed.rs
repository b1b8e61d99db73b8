//! SiT's tokens: patches with fixed positions.

use candle_core::{Device, Result, Tensor, bail};
use candle_nn::VarBuilder;

use crate::{init, linear::affine, patch::patchify};

/// A convolution over patches, and positions added to it.
#[derive(Debug, Clone)]
pub struct SitPatchEmbed {
    weight: Tensor,
    bias: Tensor,
    positions: Tensor,
    patch_size: usize,
    grid_side: usize,
}

impl SitPatchEmbed {
    /// Parameters `proj.weight`, `(D, C, P, P)`, and `proj.bias`: Xavier-uniform and zero. The positions are
    /// those of [`sincos_positions`], no parameter.
    ///
    /// `patch` is `(C, P)`; the latents have `grid_side` patches on either side.
    pub fn new(patch: (usize, usize), hidden_size: usize, grid_side: usize, vb: VarBuilder) -> Result<Self> {
        let (c, p) = patch;
        let xavier = init::xavier_uniform(c * p * p, hidden_size);
        let proj = vb.pp("proj");
        let positions = sincos_positions(hidden_size, grid_side)?.to_device(vb.device())?;
        Ok(Self {
            weight: proj.get_with_hints((hidden_size, c, p, p), "weight", xavier)?,
            bias: proj.get_with_hints(hidden_size, "bias", init::ZEROS)?,
            positions: positions.to_dtype(vb.dtype())?,
            patch_size: p,
            grid_side,
        })
    }

    /// # Shapes
    /// `xs: (B, C, H, W) -> (B, L, D)`, with `L = grid_side^2`.
    ///
    /// # Errors
    /// For latents of another size: the positions are those of one grid.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (_, c, h, w) = xs.dims4()?;
        let (p, side) = (self.patch_size, self.grid_side * self.patch_size);
        if (h, w) != (side, side) {
            bail!("expected latents of {side} x {side}, whose positions this network knows, got {h} x {w}");
        }
        let weight = self.weight.reshape((self.weight.dim(0)?, c * p * p))?; // (D, C P^2)
        affine(&patchify(xs, p)?, &weight, Some(&self.bias))?.broadcast_add(&self.positions)
    }
}

/// Sines and cosines of the column, then of the row, of each token of a square grid:
///
/// ```text
/// f[i] = 10000^(-4i/D), i = 0 .. D/4;  [sin(x f), cos(x f), sin(y f), cos(y f)]
/// ```
///
/// # Shapes
/// `-> (1, grid_side^2, D)` in f32: the `pos_embed` of DiT's and SiT's files.
///
/// # Errors
/// When `hidden_size` is no multiple of 4, or a side is 0.
pub fn sincos_positions(hidden_size: usize, grid_side: usize) -> Result<Tensor> {
    if !hidden_size.is_multiple_of(4) || hidden_size == 0 || grid_side == 0 {
        bail!("expected a hidden size that is a multiple of 4 and a grid, got {hidden_size} and {grid_side}");
    }
    let quarter = hidden_size / 4;
    let frequencies: Vec<f64> = (0..quarter).map(|i| 10_000f64.powf(-(i as f64) / quarter as f64)).collect();
    let mut table = Vec::with_capacity(grid_side * grid_side * hidden_size);
    for row in 0..grid_side {
        for column in 0..grid_side {
            for position in [column as f64, row as f64] {
                table.extend(frequencies.iter().map(|f| (position * f).sin() as f32));
                table.extend(frequencies.iter().map(|f| (position * f).cos() as f32));
            }
        }
    }
    Tensor::from_vec(table, (1, grid_side * grid_side, hidden_size), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_column_comes_before_the_row() -> Result<()> {
        let table = sincos_positions(8, 3)?;
        assert_eq!(table.dims(), &[1, 9, 8]);
        // Token 5 is row 1, column 2; frequencies 1 and 0.01.
        let token: Vec<f32> = table.get(0)?.get(5)?.to_vec1()?;
        let expected =
            [2f32.sin(), 0.02f32.sin(), 2f32.cos(), 0.02f32.cos(), 1f32.sin(), 0.01f32.sin(), 1f32.cos()];
        for (got, want) in token.iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{token:?}");
        }
        assert!(sincos_positions(6, 3).is_err());
        Ok(())
    }
}
