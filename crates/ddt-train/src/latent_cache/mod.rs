//! Latents on disk, encoded once and trained on often.
//!
//! ```text
//! cache/
//!   index.json                 what the latents are, and every shard with its SHA-256
//!   shard-00000.safetensors    labels (N), latents (N, C, H, W), and where there are any:
//!                              std, features, and each of these again for the mirrored images
//! ```
//!
//! A [`LatentCacheWriter`] fills it shard by shard and goes on where it was stopped; the index of a cache that is not finished says so.
//! A [`LatentCache`] reads rows where they lie, so a cache may be larger than memory.

pub use self::{
    index::{CacheContent, FeatureShape},
    reader::LatentCache,
    writer::{EncodedImages, LatentCacheWriter},
};

mod index;
mod reader;
mod writer;
