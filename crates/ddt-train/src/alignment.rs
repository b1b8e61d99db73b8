//! Representation alignment: the encoder's tokens should say what a frozen network sees.

use candle_core::{D, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// Which tokens are aligned, with what, and how much it counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlignmentConfig {
    /// Block whose output is aligned, from 1.
    pub layer: usize,
    /// Channels of the frozen network's tokens.
    pub feature_dim: usize,
    /// Factor of the alignment loss beside the flow's.
    pub weight: f64,
}

impl AlignmentConfig {
    /// The paper's, for DINOv2 ViT-B/14: block 8, weight 0.5.
    pub const PAPER: Self = Self { layer: 8, feature_dim: 768, weight: 0.5 };
}

/// Tokens of a frozen network, one grid an image.
#[derive(Debug, Clone)]
pub struct Features {
    /// `(B, rows * columns, F)`, row after row.
    pub tokens: Tensor,
    /// Rows and columns.
    pub grid: (usize, usize),
}

impl Features {
    /// The tokens on another grid, bilinear where the grids differ: `(B, rows * columns, F)`.
    ///
    /// # Errors
    /// When the tokens are not as many as the grid has places.
    pub fn on_grid(&self, grid: (usize, usize)) -> Result<Tensor> {
        if self.grid == grid {
            return Ok(self.tokens.clone());
        }
        ddt_flow::resample_tokens(&self.tokens, self.grid, grid)
    }
}

/// How far tokens point from those they are aligned with.
///
/// ```text
/// mean over rows and tokens of 1 - cos(projected, target)      (Eq. 3)
/// ```
///
/// # Shapes
/// Both `(B, L, F)`; `-> ()`, in f32.
///
/// # Errors
/// When the shapes differ.
pub fn alignment_loss(projected: &Tensor, target: &Tensor) -> Result<Tensor> {
    if projected.dims() != target.dims() {
        bail!("expected tokens {:?} to align with, got {:?}", projected.dims(), target.dims());
    }
    let unit = |xs: &Tensor| {
        let xs = xs.to_dtype(candle_core::DType::F32)?;
        // Inside the root, so that a token of zeros has a gradient.
        xs.broadcast_div(&(xs.sqr()?.sum_keepdim(D::Minus1)? + 1e-16)?.sqrt()?)
    };
    // Targets are given: no gradient goes there.
    let cosine = (unit(projected)? * unit(&target.detach())?)?.sum(D::Minus1)?;
    1.0 - cosine.mean_all()?
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn counts_directions_not_lengths() {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap().reshape((1, 2, 2)).unwrap();
        let loss = |a: &[f32], b: &[f32]| {
            alignment_loss(&tensor(a), &tensor(b)).unwrap().to_scalar::<f32>().unwrap()
        };
        let xs = [1.0, 2.0, -3.0, 0.5];
        assert!(loss(&xs, &[10.0, 20.0, -3e3, 5e2]).abs() < 1e-6);
        assert!((loss(&xs, &[-1.0, -2.0, 3.0, -0.5]) - 2.0).abs() < 1e-6);
        // One token agrees, the other is at a right angle.
        assert!((loss(&xs, &[1.0, 2.0, 0.5, 3.0]) - 0.5).abs() < 1e-6);
        assert!(alignment_loss(&tensor(&xs), &tensor(&xs).squeeze(0).unwrap()).is_err());
    }
}
