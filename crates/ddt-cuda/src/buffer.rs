//! Named buffers of a batch, and ranges of them.

use std::ops::Range;

use ddt_sharing::ForecastOrder;

/// All buffers and weights begin at a multiple of this many bytes.
pub const ALIGNMENT: usize = 256;

/// Number type of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Numbers of 16 bits, sums in f32.
    Bf16,
    /// All in f32, without TF32.
    F32,
}

impl Precision {
    /// The type of an element.
    pub fn element(self) -> Element {
        match self {
            Self::Bf16 => Element::Bf16,
            Self::F32 => Element::F32,
        }
    }
}

/// Size and precision of a batch, and how its steps share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Images.
    pub images: usize,
    /// Height of a latent, a multiple of the patch.
    pub height: usize,
    /// Width of a latent, a multiple of the patch.
    pub width: usize,
    /// Number type of the network.
    pub precision: Precision,
    /// Order of the forecasts at steps that share, which says how many sets of modulations are kept.
    pub order: ForecastOrder,
}

/// Type of a buffer's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// 16 bits with the range of f32.
    Bf16,
    /// 32 bits.
    F32,
    /// Unsigned, 32 bits.
    U32,
}

impl Element {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 | Self::U32 => 4,
        }
    }
}

/// Lifetime of a buffer's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Kept from one step to the next, in memory of its own.
    Run,
    /// Within a step: its memory is reused by others.
    Step,
}

/// A buffer of a [`Batch`]'s programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Name of its contents.
    pub name: String,
    /// Type of its elements.
    pub element: Element,
    /// Elements it has room for.
    pub len: usize,
    /// Lifetime of its contents.
    pub lifetime: Lifetime,
}

impl Buffer {
    /// Bytes it has room for.
    pub fn bytes(&self) -> usize {
        self.len.saturating_mul(self.element.bytes())
    }
}

/// A buffer's position among its programs' buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub(crate) usize);

impl BufferId {
    /// The position.
    pub fn index(self) -> usize {
        self.0
    }

    /// `len` elements from `start`.
    pub(crate) fn span(self, start: usize, len: usize) -> Span {
        Span { buffer: self, start, len }
    }
}

/// Neighbouring elements of one buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The buffer.
    pub buffer: BufferId,
    /// The first element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

impl Span {
    /// The elements' positions in the buffer.
    pub fn range(self) -> Range<usize> {
        self.start..self.start.saturating_add(self.len)
    }
}
