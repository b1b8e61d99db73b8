//! Adaptive layer normalisation: a condition's shifts, scales and gates.

use candle_core::{D, Error, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_kernels::PackedLinear;

use crate::{block::Block, init, linear::Linear, projection::Projection};

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
    /// A tensor with all of these, in this order, and the first's first column: they are views of it.
    pub(crate) whole: Option<(Tensor, usize)>,
}

impl Modulation {
    /// Views of the `6D` columns of `whole` from `first` on.
    pub(crate) fn of(whole: Tensor, first: usize, d: usize) -> Result<Self> {
        Ok(Self {
            attn_shift_scale: whole.narrow(D::Minus1, first, 2 * d)?,
            attn_gate: whole.narrow(D::Minus1, first + 2 * d, d)?,
            mlp_shift_scale: whole.narrow(D::Minus1, first + 3 * d, 2 * d)?,
            mlp_gate: whole.narrow(D::Minus1, first + 5 * d, d)?,
            whole: Some((whole, first)),
        })
    }

    /// The first `rows` images' share.
    pub fn narrow_rows(&self, rows: usize) -> Result<Self> {
        Ok(Self {
            attn_shift_scale: self.attn_shift_scale.narrow(0, 0, rows)?,
            attn_gate: self.attn_gate.narrow(0, 0, rows)?,
            mlp_shift_scale: self.mlp_shift_scale.narrow(0, 0, rows)?,
            mlp_gate: self.mlp_gate.narrow(0, 0, rows)?,
            whole: self
                .whole
                .as_ref()
                .map(|(it, first)| Ok::<_, Error>((it.narrow(0, 0, rows)?, *first)))
                .transpose()?,
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
    linear: Projection,
    hidden_size: usize,
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
        Ok(Self { linear: Projection::new(linear)?, hidden_size })
    }

    /// # Shapes
    /// `condition: (B, M, D)`.
    pub fn forward(&self, condition: &Tensor) -> Result<Modulation> {
        let (Some(linear), d) = (self.linear.plain(), self.hidden_size) else {
            return self.forward_whole(condition);
        };
        // Four products instead of one, so that no part needs a copy and no gradient a padded sum.
        Ok(Modulation {
            attn_shift_scale: linear.forward_outputs(condition, 0, 2 * d)?,
            attn_gate: linear.forward_outputs(condition, 2 * d, d)?,
            mlp_shift_scale: linear.forward_outputs(condition, 3 * d, 2 * d)?,
            mlp_gate: linear.forward_outputs(condition, 5 * d, d)?,
            whole: None,
        })
    }

    /// The same by one product of which the parts are views: for a block that takes them all at once.
    pub(crate) fn forward_whole(&self, condition: &Tensor) -> Result<Modulation> {
        Modulation::of(self.linear.forward(condition)?, 0, self.hidden_size) // from (B, M, 6D)
    }
}

/// The layers of several blocks under one condition, as one product.
#[derive(Debug, Clone)]
pub struct AdaLnStack {
    linear: PackedLinear,
    hidden_size: usize,
    blocks: usize,
}

impl AdaLnStack {
    /// Joins the blocks' layers, which stay what they were; nothing where they are trained, not on the CPU, or of
    /// sizes that cannot be joined.
    pub fn join<'a>(blocks: impl Iterator<Item = &'a mut Block>) -> Option<Self> {
        let mut ada_lns: Vec<&mut AdaLn> = blocks.map(Block::ada_ln_mut).collect();
        let first = ada_lns.first()?;
        let (hidden_size, stand_in) = (first.hidden_size, first.linear.packed()?.clone());
        if ada_lns.iter().any(|it| it.linear.packed().is_none()) {
            return None;
        }
        // Taken out, so that each one's memory goes as it is copied.
        let take = |it: &mut &mut AdaLn| match &mut it.linear {
            Projection::Packed(packed) => Some(std::mem::replace(packed, stand_in.clone())),
            Projection::Plain(_) => None,
        };
        let layers = ada_lns.iter_mut().filter_map(take).collect();
        let (joined, layers) = match PackedLinear::joined(layers) {
            Ok((joined, parts)) => (Some(joined), parts),
            Err(layers) => (None, layers),
        };
        let blocks = layers.len();
        for (ada_ln, layer) in ada_lns.into_iter().zip(layers) {
            ada_ln.linear = Projection::Packed(layer);
        }
        let linear = joined?;
        Some(Self { linear, hidden_size, blocks })
    }

    /// What `condition`, `(B, 1 or L, D)`, makes of each block: [`Block::modulation`] of all at once.
    ///
    /// # Errors
    /// On any other shape.
    pub fn modulations(&self, condition: &Tensor) -> Result<Vec<Modulation>> {
        let (all, d) = (self.linear.forward(condition)?, self.hidden_size); // (B, M, 6D for each block)
        (0..self.blocks).map(|i| Modulation::of(all.clone(), 6 * d * i, d)).collect()
    }
}
