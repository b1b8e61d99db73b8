//! Which rows a modulation row applies to.

use candle_core::Tensor;

/// Whether a modulation (shift and scale, gate, or addend) is one row per image or one per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Modulation {
    /// (B, 1, ·): a row applies to all tokens of its image, and its gradient sums over them.
    PerImage,
    /// (B, L, ·): every token has its own row.
    PerToken,
}

impl Modulation {
    /// Reads the kind off the shape of `tensor`, which must be (B, 1, `width`) or (B, L, `width`).
    pub(crate) fn of(tensor: &Tensor, (b, l): (usize, usize), width: usize) -> Option<Self> {
        match tensor.dims3() {
            Ok(dims) if dims == (b, l, width) && l != 1 => Some(Self::PerToken),
            Ok(dims) if dims == (b, 1, width) => Some(Self::PerImage),
            _ => None,
        }
    }
}
