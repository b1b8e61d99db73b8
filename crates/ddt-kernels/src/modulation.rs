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

/// Which columns of a modulation's rows belong to an operation: rows may hold those of several.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns {
    /// Length of a row.
    pub(crate) row: usize,
    /// The operation's first column.
    pub(crate) first: usize,
}

impl Columns {
    /// All columns of rows of `row`.
    pub(crate) fn all(row: usize) -> Self {
        Self { row, first: 0 }
    }

    /// The operation's `width` columns of row `source` of `rows`.
    pub(crate) fn of<T>(self, rows: &[T], source: usize, width: usize) -> &[T] {
        &rows[source * self.row + self.first..][..width]
    }
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
