//! The systems that the paper compares DDT with, each a small network over the same layers.

mod dagger;
mod improved_sit;
mod mixer;
mod sit;

pub use dagger::DdtDagger;
pub use improved_sit::ImprovedSit;
pub use mixer::MixerDdt;
pub use sit::{Repa, Sit};
