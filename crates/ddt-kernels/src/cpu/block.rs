//! Forward and backward of [`crate::transformer_block`]: the other operations in a row, on slices.

use pulp::c32;

use super::attention;
use super::gate_residual;
use super::rms_norm_modulate as norm;
use super::rows::Rows;
use crate::modulation::{Columns, Modulation};

mod backward;
mod forward;

pub(crate) use backward::backward;
pub(crate) use forward::{Saved, forward};

/// Number of a block's weights.
pub(crate) const WEIGHTS: usize = 10;

/// What both passes read; all slices are contiguous.
pub(crate) struct Inputs<'a> {
    /// (B, L, D).
    pub(crate) x: &'a [f32],
    /// (B, 1 or L, 6 D): shift, scale and gate of the attention, then of the MLP.
    pub(crate) modulation: &'a [f32],
    pub(crate) kind: Modulation,
    pub(crate) weights: Weights<'a>,
    pub(crate) turns: &'a [c32],
    pub(crate) sizes: attention::Sizes,
    pub(crate) eps: f32,
}

/// In the order in which gradients are returned.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) norm1: &'a [f32],
    pub(crate) qkv: &'a [f32],
    pub(crate) q_norm: &'a [f32],
    pub(crate) k_norm: &'a [f32],
    pub(crate) proj_weight: &'a [f32],
    pub(crate) proj_bias: &'a [f32],
    pub(crate) norm2: &'a [f32],
    pub(crate) w1: &'a [f32],
    pub(crate) w2: &'a [f32],
    pub(crate) w3: &'a [f32],
}

/// The attention's half of a block, or the MLP's.
#[derive(Debug, Clone, Copy)]
enum Half {
    Attention,
    Mlp,
}

impl Inputs<'_> {
    fn rows(&self) -> Rows {
        Rows::new(self.sizes.batch, self.sizes.tokens)
    }

    /// B L.
    fn tokens(&self) -> usize {
        self.sizes.batch * self.sizes.tokens
    }

    /// D.
    fn hidden(&self) -> usize {
        self.weights.norm1.len()
    }

    /// F, the width of the MLP.
    fn mlp(&self) -> usize {
        self.weights.w1.len() / self.hidden().max(1)
    }

    fn columns(&self, part: usize) -> Columns {
        Columns { row: 6 * self.hidden(), first: part * self.hidden() }
    }

    /// The norm before a half.
    fn norm<'b>(&'b self, half: Half, x: &'b [f32]) -> norm::Inputs<'b, f32> {
        let (weight, part) = match half {
            Half::Attention => (self.weights.norm1, 0),
            Half::Mlp => (self.weights.norm2, 3),
        };
        norm::Inputs {
            x,
            weight,
            shift_scale: self.modulation,
            columns: self.columns(part),
            modulation: self.kind,
            rows: self.rows(),
            eps: self.eps,
        }
    }

    /// The gate after a half.
    fn gate(&self, half: Half) -> gate_residual::Plan {
        let part = match half {
            Half::Attention => 2,
            Half::Mlp => 5,
        };
        gate_residual::Plan {
            width: self.hidden(),
            columns: self.columns(part),
            modulation: self.kind,
            rows: self.rows(),
        }
    }

    fn attention<'b>(&'b self, qkv: &'b [f32]) -> attention::Inputs<'b, f32> {
        let weights = (self.weights.q_norm, self.weights.k_norm);
        attention::Inputs::new(qkv, weights, self.turns, self.sizes, self.eps)
    }
}
