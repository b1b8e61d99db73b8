//! Self-attention with normalised, rotated queries and keys, and its parts: RMS norm and rotary positions.

use candle_core::{D, DType, Device, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_kernels::{ModulationSource, RopeTable};

use crate::linear::{Linear, ONES};

/// `rms(x) = x / sqrt(mean(x^2) + eps) * weight`, over the last axis.
///
/// Statistics are in f32; the quotient is cast to the input's dtype before the weight multiplies.
///
/// # Shapes
/// `xs: (.., D) -> (.., D)`.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
}

impl RmsNorm {
    /// Added to the mean square.
    pub const EPS: f64 = 1e-6;

    /// Parameter `weight` of `size`, initialised to one.
    pub fn new(size: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get_with_hints(size, "weight", ONES)? })
    }

    /// `(D)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The norm with this weight, `(D)`.
    pub(crate) fn of(weight: Tensor) -> Self {
        Self { weight }
    }

    /// `rms(x) (1 + scale) + shift` in one pass.
    ///
    /// # Shapes
    /// `xs: (B, L, D)`, `shift_scale: (B, 1 or L, 2D)` with the shift first, `-> (B, L, D)`.
    pub fn forward_modulated<'a>(
        &self,
        xs: &Tensor,
        shift_scale: impl Into<ModulationSource<'a>>,
    ) -> Result<Tensor> {
        ddt_kernels::rms_norm_modulate(xs, &self.weight.to_dtype(xs.dtype())?, shift_scale, Self::EPS)
    }
}

impl Module for RmsNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let x = xs.to_dtype(DType::F32)?;
        let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + Self::EPS)?.sqrt()?;
        x.broadcast_div(&rms)?.to_dtype(xs.dtype())?.broadcast_mul(&self.weight.to_dtype(xs.dtype())?)
    }
}

/// Axial rotary position embedding: the angles of a token at column `x` and row `y` of a grid.
///
/// ```text
/// DDT:      angle[2m] = x * theta^(-4m/K),  angle[2m+1]     = y * theta^(-4m/K),  m = 0 .. K/4
/// DiT^DH:   angle[m]  = y * theta^(-4m/K),  angle[K/4 + m]  = x * theta^(-4m/K)
/// ```
///
/// Pair `j` of a head, its elements `2j` and `2j + 1`, is one complex number rotated by `angle[j]`.
/// DDT's positions run over `linspace(0, 16)` along each side **at any resolution**, so a network trained at one size
/// sees the same range of angles at another. DiT^DH's are the integers from 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AxialRope2d {
    head_dim: usize,
    rows_first: bool,
}

impl AxialRope2d {
    const THETA: f64 = 10_000.0;
    const EXTENT: f64 = 16.0;

    /// DDT's.
    ///
    /// # Errors
    /// When `head_dim` is not a positive multiple of 4.
    pub fn new(head_dim: usize) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(4) {
            bail!("expected a head size that is a positive multiple of 4, got {head_dim}");
        }
        Ok(Self { head_dim, rows_first: false })
    }

    /// DiT^DH's.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn rows_first(head_dim: usize) -> Result<Self> {
        Ok(Self { rows_first: true, ..Self::new(head_dim)? })
    }

    /// The table of a `height x width` token grid in row-major order: `L = height * width` rows.
    pub fn table(&self, height: usize, width: usize, device: &Device) -> Result<RopeTable> {
        let freqs: Vec<f32> = (0..self.head_dim)
            .step_by(4)
            .map(|j| Self::THETA.powf(-(j as f64) / self.head_dim as f64) as f32)
            .collect();
        let positions = if self.rows_first { integers } else { positions };
        let (xs, ys) = (positions(width), positions(height));
        let mut angles = Vec::with_capacity(height * width * self.head_dim / 2);
        for y in &ys {
            for x in &xs {
                if self.rows_first {
                    angles.extend([y, x].into_iter().flat_map(|at| freqs.iter().map(move |f| at * f)));
                } else {
                    angles.extend(freqs.iter().flat_map(|f| [x * f, y * f]));
                }
            }
        }
        let angles = Tensor::from_vec(angles, (height * width, self.head_dim / 2), &Device::Cpu)?; // (L, K/2)
        RopeTable::new(angles.cos()?.to_device(device)?, angles.sin()?.to_device(device)?)
    }
}

/// The grid of an image's tokens: what a block knows of their positions.
#[derive(Debug, Clone)]
pub struct TokenGrid {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) rope: RopeTable,
}

impl TokenGrid {
    /// A grid of tokens in row-major order, `L = rows * columns`, with the rotary angles of [`AxialRope2d`].
    ///
    /// # Errors
    /// When `head_dim` is not a positive multiple of 4.
    pub fn new(rows: usize, columns: usize, head_dim: usize, device: &Device) -> Result<Self> {
        Self::with_rope(rows, columns, AxialRope2d::new(head_dim)?, device)
    }

    /// [`new`](Self::new) with other angles.
    ///
    /// # Errors
    /// When the table cannot be made.
    pub fn with_rope(rows: usize, columns: usize, rope: AxialRope2d, device: &Device) -> Result<Self> {
        Ok(Self { rows, columns, rope: rope.table(rows, columns, device)? })
    }
}

/// `linspace(0, EXTENT, n)`; a single position is 0.
fn positions(n: usize) -> Vec<f32> {
    let last = n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| (AxialRope2d::EXTENT * i as f64 / last) as f32).collect()
}

/// `0, 1, .., n - 1`.
fn integers(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

/// Multi-head attention over all tokens:
///
/// ```text
/// q, k, v = split(qkv(x));  q, k = rope(rms(q)), rope(rms(k));  y = proj(softmax(q k^T / sqrt(K)) v)
/// ```
///
/// DiT^DH's has no norms, `q, k = rope(q), rope(k)`, unless it is built with them.
#[derive(Debug, Clone)]
pub struct Attention {
    pub(crate) qkv: Linear,
    /// Norms of queries and of keys.
    pub(crate) qk_norm: Option<[RmsNorm; 2]>,
    pub(crate) proj: Linear,
    pub(crate) num_heads: usize,
}

impl Attention {
    /// DDT's: parameters `qkv` (no bias, laid out `(3, N, K)`), `q_norm`, `k_norm`, `proj`.
    pub fn new(hidden_size: usize, num_heads: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(Linear::no_bias, true, hidden_size, num_heads, vb)
    }

    /// DiT^DH's: the same parameters, `qkv` with a bias, and the norms only with `qk_norm`.
    pub fn dit_dh(hidden_size: usize, num_heads: usize, qk_norm: bool, vb: VarBuilder) -> Result<Self> {
        Self::build(Linear::new, qk_norm, hidden_size, num_heads, vb)
    }

    fn build(
        qkv: fn(usize, usize, VarBuilder) -> Result<Linear>,
        qk_norm: bool,
        hidden_size: usize,
        num_heads: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let head_dim = head_dim(hidden_size, num_heads)?;
        let norm = |name| RmsNorm::new(head_dim, vb.pp(name));
        Ok(Self {
            qkv: qkv(hidden_size, 3 * hidden_size, vb.pp("qkv"))?,
            qk_norm: if qk_norm { Some([norm("q_norm")?, norm("k_norm")?]) } else { None },
            proj: Linear::new(hidden_size, hidden_size, vb.pp("proj"))?,
            num_heads,
        })
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`; `rope` has `L` rows.
    pub fn forward(&self, xs: &Tensor, rope: &RopeTable) -> Result<Tensor> {
        let qkv = self.qkv.forward(xs)?; // (B, L, 3D)
        let ys = match &self.qk_norm {
            Some(norms) => {
                let [q_weight, k_weight] = norms.each_ref().map(|it| it.weight().to_dtype(xs.dtype()));
                let (q_weight, k_weight) = (q_weight?, k_weight?);
                ddt_kernels::attention(&qkv, &q_weight, &k_weight, rope, self.num_heads, RmsNorm::EPS)?
            }
            None => ddt_kernels::rotary_attention(&qkv, rope, self.num_heads)?,
        };
        self.proj.forward(&ys)
    }
}

/// `hidden_size / num_heads`.
pub(crate) fn head_dim(hidden_size: usize, num_heads: usize) -> Result<usize> {
    if num_heads == 0 || !hidden_size.is_multiple_of(num_heads) {
        bail!("expected a hidden size divisible by {num_heads} heads, got {hidden_size}");
    }
    Ok(hidden_size / num_heads)
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
    fn rows_come_first_in_dit_dh() -> Result<()> {
        let table = AxialRope2d::rows_first(8)?.table(2, 3, &Device::Cpu)?;
        let cos: Vec<Vec<f32>> = table.cos().to_vec2()?;
        // Token (row 1, column 2); frequencies 1 and 0.01.
        let expected = [1f32, 0.01, 2.0, 0.02].map(f32::cos);
        for (got, want) in cos[5].iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        Ok(())
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
