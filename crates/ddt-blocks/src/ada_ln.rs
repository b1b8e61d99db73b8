//! Adaptive layer normalisation: a condition's shifts, scales and gates.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::linear::Linear;

/// What steers one block, for its attention and its MLP.
///
/// `M` is 1 when the condition is one vector an image (condition encoder), `L` when it is one a token
/// (velocity decoder).
#[derive(Debug, Clone)]
pub struct Modulation {
    /// Shift, then scale, of the attention's input: `(B, M, 2D)`.
    pub attn_shift_scale: Tensor,
    /// Gate of the attention's output: `(B, M, D)`.
    pub attn_gate: Tensor,
    /// Shift, then scale, of the MLP's input: `(B, M, 2D)`.
    pub mlp_shift_scale: Tensor,
    /// Gate of the MLP's output: `(B, M, D)`.
    pub mlp_gate: Tensor,
}

impl Modulation {
    /// The first `rows` images' share.
    pub fn narrow_rows(&self, rows: usize) -> Result<Self> {
        Ok(Self {
            attn_shift_scale: self.attn_shift_scale.narrow(0, 0, rows)?,
            attn_gate: self.attn_gate.narrow(0, 0, rows)?,
            mlp_shift_scale: self.mlp_shift_scale.narrow(0, 0, rows)?,
            mlp_gate: self.mlp_gate.narrow(0, 0, rows)?,
        })
    }
}

/// `Linear(D -> 6D)` from a condition to a [`Modulation`], split in the order shift, scale, gate of
/// attention, then of the MLP.
///
/// Differs from DiT: no activation of its own (the SiLU is in the condition), and not initialised to
/// zero.
#[derive(Debug, Clone)]
pub struct AdaLn {
    linear: Linear,
    hidden_size: usize,
}

impl AdaLn {
    /// Parameters under `0`, as the published `adaLN_modulation.0`.
    pub fn new(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { linear: Linear::new(hidden_size, 6 * hidden_size, vb.pp("0"))?, hidden_size })
    }

    /// # Shapes
    /// `condition: (B, M, D)`.
    pub fn forward(&self, condition: &Tensor) -> Result<Modulation> {
        let d = self.hidden_size;
        // Four products instead of one, so that no part needs a copy and no gradient a padded sum.
        Ok(Modulation {
            attn_shift_scale: self.linear.forward_outputs(condition, 0, 2 * d)?,
            attn_gate: self.linear.forward_outputs(condition, 2 * d, d)?,
            mlp_shift_scale: self.linear.forward_outputs(condition, 3 * d, 2 * d)?,
            mlp_gate: self.linear.forward_outputs(condition, 5 * d, d)?,
        })
    }
}
