//! Weights on the Hugging Face hub, and in its local cache.
//!
//! Looking into the cache is file-system work and always there; downloading needs the feature `hub`.

mod cache;
#[cfg(feature = "hub")]
mod error;
#[cfg(feature = "hub")]
mod fetch;
mod options;

pub use self::cache::find_cached;
#[cfg(feature = "hub")]
pub use self::error::HubError;
#[cfg(feature = "hub")]
pub use self::fetch::{Progress, fetch};
pub use self::options::HubOptions;

/// One published file: where it is, and what is known about its bytes.
///
/// Entries are written into the program, so their parts may become paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightsEntry {
    /// `owner/name` on the hub.
    pub repository: &'static str,
    /// A commit, or a branch.
    pub revision: &'static str,
    /// Path inside the repository.
    pub file: &'static str,
    /// Size of the file.
    pub size: FileSize,
    /// SHA-256 in lower-case hexadecimal, where it is known.
    pub sha256: Option<&'static str>,
}

/// A file's size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSize {
    /// To the byte: another size is another file.
    Exact(u64),
    /// For telling a user what to expect; never compared.
    About(u64),
}

impl FileSize {
    /// The number of bytes, exact or not.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Exact(bytes) | Self::About(bytes) => bytes,
        }
    }
}

/// DDT-XL/2, 22 encoder and 6 decoder blocks, 256 px: a training checkpoint, averages included.
///
/// Its size is approximate: XL/2's weights, their average and the optimiser's state.
pub const DDT_XL_R256: WeightsEntry = WeightsEntry {
    repository: "MCG-NJU/DDT-XL-22en6de-R256",
    revision: "main",
    file: "model.ckpt",
    size: FileSize::About(11_000_000_000),
    sha256: None,
};

/// DDT-XL/2, 22 encoder and 6 decoder blocks, 512 px: a training checkpoint, averages included.
///
/// Its size is approximate: XL/2's weights, their average and the optimiser's state.
pub const DDT_XL_R512: WeightsEntry =
    WeightsEntry { repository: "MCG-NJU/DDT-XL-22en6de-R512", ..DDT_XL_R256 };

/// The autoencoder that DDT was trained with, [`KlConfig::sd_vae_ft_ema`](crate::KlConfig::sd_vae_ft_ema).
///
/// Its size is approximate: 83,653,863 numbers of four bytes, and a header.
pub const SD_VAE_FT_EMA: WeightsEntry = WeightsEntry {
    repository: "stabilityai/sd-vae-ft-ema",
    revision: "f04b2c4b98319346dad8c65879f680b1997b204a",
    file: "diffusion_pytorch_model.safetensors",
    size: FileSize::About(334_643_276),
    sha256: None,
};
