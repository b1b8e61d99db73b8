//! Root-mean-square normalisation.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::VarBuilder;

use crate::init;

/// `rms(x) = x / sqrt(mean(x^2) + eps) * weight`, over the last axis.
///
/// Statistics are in f32; the quotient is cast to the input's dtype before the weight multiplies.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
}

impl RmsNorm {
    /// Added to the mean square.
    pub const EPS: f64 = 1e-6;

    /// Parameter `weight` of `size`, initialised to one.
    pub fn new(size: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get_with_hints(size, "weight", init::ONES)? })
    }

    /// The layer's weight.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// # Shapes
    /// `xs: (.., D) -> (.., D)`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let x = xs.to_dtype(DType::F32)?;
        let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + Self::EPS)?.sqrt()?;
        x.broadcast_div(&rms)?.to_dtype(xs.dtype())?.broadcast_mul(&self.weight)
    }

    /// `rms(x) (1 + scale) + shift` in one pass.
    ///
    /// # Shapes
    /// `xs: (B, L, D)`, `shift_scale: (B, 1 or L, 2D)` with the shift first, `-> (B, L, D)`.
    pub fn forward_modulated(&self, xs: &Tensor, shift_scale: &Tensor) -> Result<Tensor> {
        ddt_kernels::rms_norm_modulate(xs, &self.weight, shift_scale, Self::EPS)
    }
}
