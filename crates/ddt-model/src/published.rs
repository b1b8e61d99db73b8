//! The published weights of DDT: where they are, and the network in them.

use crate::config::DdtConfig;

/// A published file of weights.
#[derive(Debug, Clone, Copy)]
pub struct PublishedWeights {
    /// `owner/name` on the Hugging Face hub.
    pub repository: &'static str,
    /// A commit, or a branch.
    pub revision: &'static str,
    /// Path inside the repository.
    pub file: &'static str,
    /// About how many bytes it has: for telling a user what to expect, not for comparing.
    pub approximate_size: u64,
    /// Sizes of its network, which the file does not state.
    pub config: fn() -> DdtConfig,
    /// Height and width of the images it was trained on, in pixels.
    pub resolution: usize,
}

/// DDT-XL/2, 22 encoder and 6 decoder blocks, 256 px: a training checkpoint of weights, their average and the
/// optimiser's state.
pub const DDT_XL_2_R256: PublishedWeights = PublishedWeights {
    repository: "MCG-NJU/DDT-XL-22en6de-R256",
    revision: "main",
    file: "model.ckpt",
    approximate_size: 11_000_000_000,
    config: DdtConfig::xl_2,
    resolution: 256,
};

/// DDT-XL/2, 22 encoder and 6 decoder blocks, 512 px: a training checkpoint as that for 256 px.
pub const DDT_XL_2_R512: PublishedWeights =
    PublishedWeights { repository: "MCG-NJU/DDT-XL-22en6de-R512", resolution: 512, ..DDT_XL_2_R256 };
