//! The work of the GPU as data: lists of operations on named buffers.

pub use batch::{Batch, Precision, Programs};
pub use buffer::{Buffer, BufferId, Element, Lifetime, Span};
pub use op::{GemmShape, Modulation, Norm, NormKind, Op};

mod batch;
mod buffer;
mod op;
mod steps;
