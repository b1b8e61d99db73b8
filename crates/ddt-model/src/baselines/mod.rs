//! The systems that the paper compares DDT with, each a small network over the same layers.

mod sit;
mod variants;

pub use sit::{DdtDagger, Repa, Sit};
pub use variants::{ImprovedSit, MixerDdt};
