//! From the last tokens to patches of velocity.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::{init, projection::Projection};

/// `y = linear(layer_norm(x) (1 + scale) + shift)`, the norm without affine parameters.
///
/// Both linear layers start at zero, so an untrained network predicts a zero velocity.
#[derive(Debug, Clone)]
pub struct FinalLayer {
    linear: Projection,
    modulation: Projection,
    condition: Condition,
}

/// What the condition still lacks when it comes.
#[derive(Debug, Clone, Copy)]
enum Condition {
    Activated,
    NeedsSilu,
}

impl FinalLayer {
    const EPS: f64 = 1e-6;

    /// Parameters `linear` and `adaLN_modulation.0`; `patch_dim` is `C P^2`.
    pub fn new(hidden_size: usize, patch_dim: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(hidden_size, patch_dim, (Condition::Activated, "0"), vb)
    }

    /// SiT's, with a SiLU of its own before the modulation: parameters `linear` and `adaLN_modulation.1`.
    pub fn sit(hidden_size: usize, patch_dim: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(hidden_size, patch_dim, (Condition::NeedsSilu, "1"), vb)
    }

    fn build(
        hidden_size: usize,
        patch_dim: usize,
        (condition, name): (Condition, &str),
        vb: VarBuilder,
    ) -> Result<Self> {
        let modulation = vb.pp("adaLN_modulation").pp(name);
        Ok(Self {
            linear: Projection::new(init::zero_linear(hidden_size, patch_dim, vb.pp("linear"))?)?,
            modulation: Projection::new(init::zero_linear(hidden_size, 2 * hidden_size, modulation)?)?,
            condition,
        })
    }

    /// Shift, then scale, from the condition: `(B, 1 or L, D) -> (B, 1 or L, 2D)`.
    pub fn shift_scale(&self, condition: &Tensor) -> Result<Tensor> {
        match self.condition {
            Condition::Activated => self.modulation.forward(condition),
            Condition::NeedsSilu => self.modulation.forward(&ddt_kernels::silu(condition)?),
        }
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, C P^2)`.
    pub fn forward(&self, xs: &Tensor, shift_scale: &Tensor) -> Result<Tensor> {
        self.linear.forward(&ddt_kernels::layer_norm_modulate(xs, shift_scale, Self::EPS)?)
    }
}
