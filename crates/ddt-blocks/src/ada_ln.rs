//! Adaptive layer normalisation: a condition's shifts, scales and gates.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    init,
    linear::Linear,
    projection::{Projection, packs},
};

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
    /// All of these in one tensor, `(B, M, 6D)`, of which they are views.
    pub(crate) whole: Option<Tensor>,
}

impl Modulation {
    /// The first `rows` images' share.
    pub fn narrow_rows(&self, rows: usize) -> Result<Self> {
        Ok(Self {
            attn_shift_scale: self.attn_shift_scale.narrow(0, 0, rows)?,
            attn_gate: self.attn_gate.narrow(0, 0, rows)?,
            mlp_shift_scale: self.mlp_shift_scale.narrow(0, 0, rows)?,
            mlp_gate: self.mlp_gate.narrow(0, 0, rows)?,
            whole: self.whole.as_ref().map(|it| it.narrow(0, 0, rows)).transpose()?,
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
    outputs: Outputs,
}

/// The layer, whole while it is trained and in four packed parts otherwise.
#[derive(Debug, Clone)]
enum Outputs {
    Whole { linear: Linear, hidden_size: usize },
    Parts([Projection; 4]),
}

impl AdaLn {
    /// Parameters under `0`, as the published `adaLN_modulation.0`.
    pub fn new(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(Linear::new(hidden_size, 6 * hidden_size, vb.pp("0"))?, hidden_size)
    }

    /// DiT's: parameters under `1`, as the published `adaLN_modulation.1`, which start at zero. The
    /// activation that stands before it is the caller's.
    pub fn zeroed(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(init::zero_linear(hidden_size, 6 * hidden_size, vb.pp("1"))?, hidden_size)
    }

    fn build(linear: Linear, hidden_size: usize) -> Result<Self> {
        if !packs(&linear) {
            return Ok(Self { outputs: Outputs::Whole { linear, hidden_size } });
        }
        let d = hidden_size;
        let part = |start, len| Projection::new(linear.outputs(start, len)?);
        let parts = [part(0, 2 * d)?, part(2 * d, d)?, part(3 * d, 2 * d)?, part(5 * d, d)?];
        Ok(Self { outputs: Outputs::Parts(parts) })
    }

    /// # Shapes
    /// `condition: (B, M, D)`.
    pub fn forward(&self, condition: &Tensor) -> Result<Modulation> {
        // Four products instead of one, so that no part needs a copy and no gradient a padded sum.
        let [attn_shift_scale, attn_gate, mlp_shift_scale, mlp_gate] = match &self.outputs {
            Outputs::Parts([a, b, c, d]) => {
                [a.forward(condition)?, b.forward(condition)?, c.forward(condition)?, d.forward(condition)?]
            }
            Outputs::Whole { linear, hidden_size: d } => [
                linear.forward_outputs(condition, 0, 2 * d)?,
                linear.forward_outputs(condition, 2 * d, *d)?,
                linear.forward_outputs(condition, 3 * d, 2 * d)?,
                linear.forward_outputs(condition, 5 * d, *d)?,
            ],
        };
        Ok(Modulation { attn_shift_scale, attn_gate, mlp_shift_scale, mlp_gate, whole: None })
    }

    /// The same, by one product of which the parts are views where the layer is whole: for a block that takes
    /// them all at once.
    pub(crate) fn forward_whole(&self, condition: &Tensor) -> Result<Modulation> {
        let Outputs::Whole { linear, hidden_size: d } = &self.outputs else {
            return self.forward(condition);
        };
        let whole = linear.forward(condition)?; // (B, M, 6D)
        Ok(Modulation {
            attn_shift_scale: whole.narrow(D::Minus1, 0, 2 * d)?,
            attn_gate: whole.narrow(D::Minus1, 2 * d, *d)?,
            mlp_shift_scale: whole.narrow(D::Minus1, 3 * d, 2 * d)?,
            mlp_gate: whole.narrow(D::Minus1, 5 * d, *d)?,
            whole: Some(whole),
        })
    }
}
