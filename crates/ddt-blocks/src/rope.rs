//! Axial rotary position embedding on a token grid.

use candle_core::{Device, Result, Tensor, bail};
use ddt_kernels::RopeTable;

/// Rotary angles of a token at column `x` and row `y`:
///
/// ```text
/// angle[2m] = x * theta^(-4m/K),  angle[2m+1] = y * theta^(-4m/K),  m = 0 .. K/4
/// ```
///
/// Pair `j` of a head, its elements `2j` and `2j + 1`, is one complex number turned by `angle[j]`.
/// Positions run over `linspace(0, 16)` along each side **whatever the resolution**, so a network
/// trained at one size sees the same range of angles at another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AxialRope2d {
    head_dim: usize,
}

impl AxialRope2d {
    const THETA: f64 = 10_000.0;
    const EXTENT: f64 = 16.0;

    /// # Errors
    /// When `head_dim` is not a positive multiple of 4.
    pub fn new(head_dim: usize) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(4) {
            bail!("expected a head size that is a positive multiple of 4, got {head_dim}");
        }
        Ok(Self { head_dim })
    }

    /// The table of a `height x width` token grid in row-major order: `L = height * width` rows.
    pub fn table(&self, height: usize, width: usize, device: &Device) -> Result<RopeTable> {
        let freqs: Vec<f32> = (0..self.head_dim)
            .step_by(4)
            .map(|j| Self::THETA.powf(-(j as f64) / self.head_dim as f64) as f32)
            .collect();
        let (xs, ys) = (positions(width), positions(height));
        let mut angles = Vec::with_capacity(height * width * self.head_dim / 2);
        for y in &ys {
            for x in &xs {
                angles.extend(freqs.iter().flat_map(|f| [x * f, y * f]));
            }
        }
        let angles = Tensor::from_vec(angles, (height * width, self.head_dim / 2), &Device::Cpu)?; // (L, K/2)
        RopeTable::new(angles.cos()?.to_device(device)?, angles.sin()?.to_device(device)?)
    }
}

/// `linspace(0, EXTENT, n)`; a single position is 0.
fn positions(n: usize) -> Vec<f32> {
    let last = n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| (AxialRope2d::EXTENT * i as f64 / last) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_span_the_extent_at_any_resolution() {
        assert_eq!(positions(1), [0.0]);
        assert_eq!(positions(3), [0.0, 8.0, 16.0]);
        assert_eq!(positions(17)[1], 1.0);
    }

    #[test]
    fn head_sizes_not_divisible_by_four_are_refused() {
        assert!(AxialRope2d::new(6).is_err());
        assert!(AxialRope2d::new(0).is_err());
    }

    #[test]
    fn x_and_y_angles_alternate() -> Result<()> {
        let table = AxialRope2d::new(8)?.table(2, 3, &Device::Cpu)?;
        let cos: Vec<Vec<f32>> = table.cos().to_vec2()?;
        // Token (row 1, column 1): x = 8, y = 16; frequencies 1 and 0.01.
        let expected = [8f32, 16.0, 0.08, 0.16].map(f32::cos);
        for (got, want) in cos[4].iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        Ok(())
    }
}
