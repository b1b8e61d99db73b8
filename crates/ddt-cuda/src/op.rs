//! The operations that a step is made of.

use crate::{
    buffer::{BufferId, Span},
    weights::WeightId,
};

/// Shifts, scales or gates for tokens: row `token / tokens_per_row` of a matrix that may be a part of a wider
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modulation {
    /// The matrix.
    pub buffer: BufferId,
    /// Element of the buffer at which the first row's part begins.
    pub start: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Elements of a row's part.
    pub width: usize,
    /// Rows.
    pub rows: usize,
    /// Tokens that share a row: all of an image in the encoder, one in the decoder.
    pub tokens_per_row: usize,
}

/// Modulations as weighted sums of a few sets of them, computed where they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// Number of sets combined, 2 or 3; a [`Modulation`] is that of the first.
    pub sets: usize,
    /// Distance from an element of one set to that of the next.
    pub stride: usize,
    /// The step's scalars, which have the weights.
    pub scalars: Span,
}

impl Modulation {
    /// The elements from the first to the last.
    pub fn span(&self) -> Span {
        let len = self.rows.saturating_sub(1).saturating_mul(self.stride).saturating_add(self.width);
        self.buffer.span(self.start, len)
    }

    /// The spans of all sets.
    fn spans(self, forecast: Option<Forecast>) -> impl Iterator<Item = Span> {
        let (first, (sets, stride)) = (self.span(), forecast.map_or((1, 0), |it| (it.sets, it.stride)));
        (0..sets).map(move |set| Span { start: first.start + set * stride, ..first })
    }
}

/// Which mean and deviation, and what multiplies the result before it is modulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square, times a weight.
    Rms(WeightId),
    /// Mean and variance, without a weight.
    Layer,
}

/// Normalise and modulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Norm {
    /// Which norm.
    pub kind: NormKind,
    /// Shift, then scale: 2D elements a row.
    pub shift_scale: Modulation,
    /// The result, (T, D).
    pub out: Span,
}

/// One operation. Letters: `R` rows the network sees, `L` tokens of one, `T = R L`, `D` hidden size.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// `out = [cos(t f), sin(t f)]`, `f[k] = exp(-ln(10) k / 128)`; `t` is the step's, (1, 256).
    TimestepEmbedding {
        /// The step's scalars.
        scalars: Span,
        /// (1, 256).
        out: Span,
    },
    /// `out[r] = silu(time + table[labels[r]])`.
    ClassCondition {
        /// (V, D).
        table: WeightId,
        /// (R) u32, each below V.
        labels: Span,
        /// (1, D).
        time: Span,
        /// (R, D).
        out: Span,
    },
    /// `out = silu(xs + addend)`, the one row of `addend` added to every row.
    AddSilu {
        /// (rows, D).
        xs: Span,
        /// (1, D); zero if `None`.
        addend: Option<Span>,
        /// (rows, D).
        out: Span,
    },
    /// Latents to patches, `(B, C, H, W)` f32 `-> (R L, C P^2)`: once, or once for each half of the rows.
    Patchify {
        /// (B, C, H, W) f32.
        latents: Span,
        /// (R L, C P^2).
        out: Span,
    },
    /// `out = input weight^T + bias`.
    Gemm {
        /// (m, k).
        input: Span,
        /// (n, k).
        weight: WeightId,
        /// (n).
        bias: Option<WeightId>,
        /// (m, n).
        out: Span,
        /// Rows, columns of the result, and what is summed over.
        shape: GemmShape,
    },
    /// `xs += gate ys`, in place, then `norm(xs)`; either is optional.
    GateNorm {
        /// (T, D), read and, with a branch, written.
        xs: Span,
        /// `ys`, (T, D), and its gate, D elements per row.
        branch: Option<(Span, Modulation)>,
        /// The norm that the next layer reads.
        norm: Option<Norm>,
        /// Weighted sum that gives gate, shift and scale; `None` uses them as they are.
        forecast: Option<Forecast>,
    },
    /// Attention with normalised and rotated queries and keys.
    Attention {
        /// (T, 3D), laid out (3, heads, head size) in a row.
        qkv: Span,
        /// Weight of the queries' norm.
        q_norm: WeightId,
        /// Weight of the keys' norm.
        k_norm: WeightId,
        /// Cosine and sine of each pair's angle, (L, head size / 2, 2) f32.
        rope: Span,
        /// (T, D).
        out: Span,
    },
    /// `out = silu(first half of a row) * second half`.
    SwiGlu {
        /// (T, 2F).
        xs: Span,
        /// (T, F).
        out: Span,
    },
    /// Guidance and Euler's step, patches to latents: `x += dt v`.
    ///
    /// ```text
    /// v = none + scale (class - none) when guided, else class
    /// ```
    Euler {
        /// (R L, C P^2): the class rows, then those without a class when guided.
        velocity: Span,
        /// The step's scalars.
        scalars: Span,
        /// (B, C, H, W) f32, read and written.
        latents: Span,
        /// Whether the velocity has both batches of guidance.
        guided: bool,
    },
}

/// Sizes of a GEMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GemmShape {
    /// Rows of input and result.
    pub m: usize,
    /// Columns of the result, rows of the weight.
    pub n: usize,
    /// Columns of input and weight.
    pub k: usize,
}

impl Op {
    /// All that it reads, weights aside.
    pub fn reads(&self) -> Vec<Span> {
        match *self {
            Self::TimestepEmbedding { scalars, .. } => vec![scalars],
            Self::ClassCondition { labels, time, .. } => vec![labels, time],
            Self::SwiGlu { xs, .. } => vec![xs],
            Self::AddSilu { xs, addend, .. } => [xs].into_iter().chain(addend).collect(),
            Self::Patchify { latents, .. } => vec![latents],
            Self::Gemm { input, .. } => vec![input],
            Self::GateNorm { xs, branch, norm, forecast } => {
                let gate = branch.map(|(_, gate)| gate);
                let modulations = gate.into_iter().chain(norm.map(|it| it.shift_scale));
                let others = branch.map(|(ys, _)| ys).into_iter().chain(forecast.map(|it| it.scalars));
                [xs].into_iter().chain(others).chain(modulations.flat_map(|it| it.spans(forecast))).collect()
            }
            Self::Attention { qkv, rope, .. } => vec![qkv, rope],
            Self::Euler { velocity, scalars, latents, .. } => vec![velocity, scalars, latents],
        }
    }

    /// All that it writes.
    pub fn writes(&self) -> Vec<Span> {
        match *self {
            Self::TimestepEmbedding { out, .. }
            | Self::ClassCondition { out, .. }
            | Self::AddSilu { out, .. }
            | Self::Patchify { out, .. }
            | Self::Gemm { out, .. }
            | Self::Attention { out, .. }
            | Self::SwiGlu { out, .. } => vec![out],
            Self::GateNorm { xs, branch, norm, .. } => {
                branch.map(|_| xs).into_iter().chain(norm.map(|it| it.out)).collect()
            }
            Self::Euler { latents, .. } => vec![latents],
        }
    }
}
