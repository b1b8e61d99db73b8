//! What a cache says of itself.

use std::{collections::BTreeMap, path::Path};

use ddt_files::atomic_write;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{durable::io_error, error::TrainError};

/// What a cache's latents are; two caches with the same content are interchangeable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheContent {
    /// How the latents came about: images, crop, autoencoder, each with what identifies it.
    pub made_from: BTreeMap<String, String>,
    /// Names of the classes, in label order.
    pub classes: Vec<String>,
    /// Channels, height and width of an image's latents.
    pub shape: (usize, usize, usize),
    /// Whether each image has standard deviations beside its means.
    pub posterior: bool,
    /// Whether each image is there mirrored too.
    pub flips: bool,
    /// A frozen network's features, if they are cached.
    pub features: Option<FeatureShape>,
}

/// Sizes of an image's features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureShape {
    /// Rows and columns of tokens.
    pub grid: (usize, usize),
    /// Channels of a token.
    pub dim: usize,
}

impl CacheContent {
    /// Numbers that an image takes, mirrored ones and features included.
    pub fn values_per_image(&self) -> usize {
        self.fields().iter().map(|it| it.1.iter().product::<usize>()).sum()
    }

    /// The tensors of a shard beside its labels: names, and shapes without their first axis.
    pub(crate) fn fields(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (c, h, w) = self.shape;
        let latents = vec![c, h, w];
        let features = self.features.map(|it| vec![it.grid.0 * it.grid.1, it.dim]);
        let one = |names: [&'static str; 3]| {
            let [mean, std, feature] = names;
            let std = self.posterior.then(|| (std, latents.clone()));
            let features = features.clone().map(|it| (feature, it));
            [Some((mean, latents.clone())), std, features].into_iter().flatten()
        };
        let plain = one(["latents", "std", "features"]);
        let mirrored = one(["flipped.latents", "flipped.std", "flipped.features"]);
        plain.chain(mirrored.filter(|_| self.flips)).collect()
    }

    /// Whether a cache of this content can be.
    fn problem(&self) -> Option<&'static str> {
        let (c, h, w) = self.shape;
        let small = |sides: &[usize]| sides.iter().all(|it| (1..=1 << 16).contains(it));
        if !small(&[c, h, w]) {
            return Some("sizes outside 1 to 65536");
        }
        if self.features.is_some_and(|it| !small(&[it.grid.0, it.grid.1, it.dim])) {
            return Some("sizes of features outside 1 to 65536");
        }
        if self.classes.is_empty() || self.classes.len() > 1 << 24 {
            return Some("no classes, or more than 2^24");
        }
        None
    }
}

/// One file of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shard {
    pub(crate) images: usize,
    /// Images taken from the source up to the end of this shard, skipped ones included.
    pub(crate) source_end: u64,
    pub(crate) sha256: String,
}

/// The index of a cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Index {
    version: u32,
    pub(crate) content: CacheContent,
    /// `None` until all images are there.
    pub(crate) scale: Option<Scale>,
    pub(crate) shards: Vec<Shard>,
}

/// What a channel is normalised with: `(x - mean) / std`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scale {
    pub(crate) mean: Vec<f64>,
    pub(crate) std: Vec<f64>,
}

const VERSION: u32 = 1;
pub(crate) const INDEX: &str = "index.json";

impl Index {
    pub(crate) fn new(content: CacheContent) -> Self {
        Self { version: VERSION, content, scale: None, shards: Vec::new() }
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), TrainError> {
        let path = folder.join(INDEX);
        let json = serde_json::to_vec_pretty(self).map_err(|it| io_error("write", &path)(it.into()))?;
        Ok(atomic_write(&path, |file| file.write_all(&json))?)
    }

    /// The index, and the SHA-256 of its file.
    pub(crate) fn read(folder: &Path) -> Result<(Self, String), TrainError> {
        let path = folder.join(INDEX);
        let json = std::fs::read(&path).map_err(io_error("read", &path))?;
        let damaged = |problem: String| TrainError::Damaged { path: path.clone(), problem };
        let index: Self = serde_json::from_slice(&json).map_err(|it| damaged(it.to_string()))?;
        if index.version != VERSION {
            return Err(damaged(format!("expected version {VERSION}, got version {}", index.version)));
        }
        if let Some(problem) = index.content.problem() {
            return Err(damaged(problem.to_owned()));
        }
        if index.shards.iter().any(|it| !(1..=1 << 32).contains(&it.images)) {
            return Err(damaged("a shard without images, or of more than 2^32".to_owned()));
        }
        let channels = index.content.shape.0;
        let usable = |it: &Scale| {
            let sizes = it.mean.len() == channels && it.std.len() == channels;
            sizes && it.mean.iter().all(|x| x.is_finite()) && it.std.iter().all(|x| x.is_finite() && *x > 0.0)
        };
        if !index.scale.as_ref().is_none_or(usable) {
            return Err(damaged(format!("expected {channels} finite means and positive deviations")));
        }
        let sha256 = Sha256::digest(&json).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((index, sha256))
    }
}

/// The name of a shard's file.
pub(crate) fn shard_name(number: usize) -> String {
    format!("shard-{number:05}.safetensors")
}
