//! From the last tokens to patches of velocity.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::{init, linear::Linear};

/// `y = linear(layer_norm(x) (1 + scale) + shift)`, the norm without affine parameters.
///
/// Both linear layers start at zero, so an untrained network predicts a zero velocity.
#[derive(Debug, Clone)]
pub struct FinalLayer {
    linear: Linear,
    modulation: Linear,
}

impl FinalLayer {
    const EPS: f64 = 1e-6;

    /// Parameters `linear` and `adaLN_modulation.0`; `patch_dim` is `C P^2`.
    pub fn new(hidden_size: usize, patch_dim: usize, vb: VarBuilder) -> Result<Self> {
        let zeros = |out, vb| Linear::with_init(hidden_size, out, init::ZEROS, Some(init::ZEROS), vb);
        Ok(Self {
            linear: zeros(patch_dim, vb.pp("linear"))?,
            modulation: zeros(2 * hidden_size, vb.pp("adaLN_modulation").pp("0"))?,
        })
    }

    /// Shift, then scale, from the condition: `(B, 1 or L, D) -> (B, 1 or L, 2D)`.
    pub fn shift_scale(&self, condition: &Tensor) -> Result<Tensor> {
        self.modulation.forward(condition)
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, C P^2)`.
    pub fn forward(&self, xs: &Tensor, shift_scale: &Tensor) -> Result<Tensor> {
        self.linear.forward(&ddt_kernels::layer_norm_modulate(xs, shift_scale, Self::EPS)?)
    }
}
