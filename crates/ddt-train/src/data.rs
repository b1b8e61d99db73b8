//! Datasets of latents and labels, in memory or in a cache on disk.

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::{
    batch::{Batch, Pick},
    config::TrainConfig,
    error::TrainError,
    latent_cache::LatentCache,
};

/// Latents and labels, normalised as the network sees them.
#[derive(Debug)]
pub struct LatentDataset {
    store: Store,
    len: usize,
    shape: (usize, usize, usize),
    sha256: String,
}

#[derive(Debug)]
enum Store {
    Memory { latents: Vec<f32>, labels: Vec<u32> },
    Cache(Box<LatentCache>),
}

impl LatentDataset {
    /// A dataset in memory: `latents` holds one image after the other, each of `shape = (C, H, W)`.
    ///
    /// # Errors
    /// [`TrainError::Data`] when there are no images, an image is empty, or labels and latents differ in number.
    pub fn new(
        latents: Vec<f32>,
        labels: Vec<u32>,
        shape: (usize, usize, usize),
    ) -> Result<Self, TrainError> {
        let (c, h, w) = shape;
        let size = c.checked_mul(h).and_then(|it| it.checked_mul(w)).filter(|it| *it > 0);
        let wanted = size.and_then(|it| it.checked_mul(labels.len()));
        if labels.is_empty() || wanted != Some(latents.len()) {
            let expected =
                format!("one image of {shape:?} for each of {} labels, at least one", labels.len());
            return Err(TrainError::data(expected, format!("{} numbers", latents.len())));
        }
        let (len, sha256) = (labels.len(), hash(&latents, &labels, shape));
        Ok(Self { store: Store::Memory { latents, labels }, len, shape, sha256 })
    }

    /// The images of a cache, read from disk batch by batch, each channel normalised as the cache states.
    pub fn cached(cache: LatentCache) -> Self {
        Self {
            len: cache.len(),
            shape: cache.shape(),
            sha256: cache.sha256().to_owned(),
            store: Store::Cache(Box::new(cache)),
        }
    }

    /// Number of images, at least one.
    #[allow(clippy::len_without_is_empty, reason = "a dataset without images cannot be made")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Channels, height and width of an image.
    pub fn shape(&self) -> (usize, usize, usize) {
        self.shape
    }

    /// Identity of the data in lower-case hexadecimal: SHA-256 of shape, labels and latents in memory, or of
    /// a cache's index, which has the hashes of its files.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The picked images, in order.
    ///
    /// # Errors
    /// [`TrainError::Data`] for an image that is not there or more than 2^20 of them, or a mirrored one that was
    /// not cached; [`TrainError::File`] when the cache cannot be read.
    pub fn batch(&self, picks: &[Pick], device: &Device) -> Result<Batch, TrainError> {
        if picks.len() > TrainConfig::MAX_BATCH_SIZE {
            let expected = format!("a batch of at most {} images", TrainConfig::MAX_BATCH_SIZE);
            return Err(TrainError::data(expected, format!("{} images", picks.len())));
        }
        if let Some(pick) = picks.iter().find(|it| it.image >= self.len) {
            return Err(TrainError::data(format!("an image below {}", self.len), pick.image.to_string()));
        }
        match &self.store {
            Store::Cache(cache) => cache.batch(picks, device),
            Store::Memory { latents, labels } => {
                if picks.iter().any(|it| it.flipped) {
                    return Err(TrainError::data("images as they are in memory", "a mirrored one"));
                }
                let (c, h, w) = self.shape;
                let size = c * h * w;
                let image = |it: &Pick| &latents[it.image * size..(it.image + 1) * size];
                let values: Vec<f32> = picks.iter().flat_map(image).copied().collect();
                Ok(Batch {
                    latents: Tensor::from_vec(values, (picks.len(), c, h, w), device)?,
                    posterior_std: None,
                    labels: picks.iter().map(|it| labels[it.image]).collect(),
                    features: None,
                })
            }
        }
    }
}

/// Lengths come first, so that no two datasets give the same bytes.
fn hash(latents: &[f32], labels: &[u32], (c, h, w): (usize, usize, usize)) -> String {
    const BLOCK: usize = 1 << 14;
    let mut hasher = Sha256::new();
    for size in [labels.len(), c, h, w] {
        hasher.update((size as u64).to_le_bytes());
    }
    hasher.update(labels.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>());
    for block in latents.chunks(BLOCK) {
        hasher.update(block.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>());
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
