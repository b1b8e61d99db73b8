//! What is trained on: latents and labels, in memory or in a cache on disk.

use candle_core::{Device, Tensor};
use ddt_flow::CounterNoise;
use sha2::{Digest, Sha256};

use crate::{
    alignment::Features, config::TrainConfig, epoch_order::Pick, error::TrainError,
    latent_cache::LatentCache, noisy_batch::normals_like,
};

/// Latents and their labels, ready for the network: scaled as it is trained.
#[derive(Debug)]
pub struct LatentDataset {
    store: Store,
    len: usize,
    shape: (usize, usize, usize),
    max_label: u32,
    sha256: String,
}

#[derive(Debug)]
enum Store {
    Memory { latents: Vec<f32>, labels: Vec<u32> },
    Cache(Box<LatentCache>),
}

/// Some images of a dataset.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `(B, C, H, W)` f32; the means, where an autoencoder gives a distribution.
    pub latents: Tensor,
    /// Standard deviations of that distribution, in the same shape.
    pub posterior_std: Option<Tensor>,
    /// One an image.
    pub labels: Vec<u32>,
    /// A frozen network's view of the images.
    pub features: Option<Features>,
}

impl Batch {
    /// Latents drawn from the autoencoder's distribution with the noise at each image's address; those
    /// given, where there is none.
    ///
    /// # Errors
    /// When the deviations do not have the latents' shape.
    pub fn sampled(&self, address: impl Fn(u64) -> CounterNoise + Sync) -> candle_core::Result<Tensor> {
        match &self.posterior_std {
            None => Ok(self.latents.clone()),
            Some(std) => &self.latents + (std * normals_like(std, address)?)?,
        }
    }
}

impl LatentDataset {
    /// `latents` holds one image after the other, each of `shape = (C, H, W)`.
    ///
    /// # Errors
    /// [`TrainError::Data`] when there are no images, images of no size, or as many labels do not fit.
    pub fn new(
        latents: Vec<f32>,
        labels: Vec<u32>,
        shape: (usize, usize, usize),
    ) -> Result<Self, TrainError> {
        let (c, h, w) = shape;
        let size = c.checked_mul(h).and_then(|it| it.checked_mul(w)).filter(|it| *it > 0);
        let wanted = size.and_then(|it| it.checked_mul(labels.len()));
        let max_label = labels.iter().copied().max();
        let (Some(max_label), true) = (max_label, wanted == Some(latents.len())) else {
            return Err(TrainError::Data {
                expected: format!("one or more images of {shape:?}, as many as the {} labels", labels.len()),
                got: format!("{} numbers", latents.len()),
            });
        };
        let (len, sha256) = (labels.len(), hash(&latents, &labels, shape));
        Ok(Self { store: Store::Memory { latents, labels }, len, shape, max_label, sha256 })
    }

    /// The images of a cache, read from disk batch by batch, each channel normalised as the cache says.
    pub fn cached(cache: LatentCache) -> Self {
        Self {
            len: cache.len(),
            shape: cache.shape(),
            max_label: cache.max_label(),
            sha256: cache.sha256().to_owned(),
            store: Store::Cache(Box::new(cache)),
        }
    }

    /// Images in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: a dataset has an image.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Channels, height and width of an image.
    pub fn shape(&self) -> (usize, usize, usize) {
        self.shape
    }

    /// The largest label.
    pub fn max_label(&self) -> u32 {
        self.max_label
    }

    /// What the data is, in lower-case hexadecimal: SHA-256 of shape, labels and latents in memory, or of
    /// a cache's index, which has the hashes of its files.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The images named, in that order.
    ///
    /// # Errors
    /// [`TrainError::Data`] when there is no such image, more than 2^20 are asked for, or a mirrored one
    /// that was not cached; [`TrainError::Checkpoint`] when the cache cannot be read.
    pub fn batch(&self, picks: &[Pick], device: &Device) -> Result<Batch, TrainError> {
        if picks.len() > TrainConfig::MAX_BATCH_SIZE {
            let expected = format!("a batch of at most {} images", TrainConfig::MAX_BATCH_SIZE);
            return Err(TrainError::Data { expected, got: format!("{} images", picks.len()) });
        }
        if let Some(pick) = picks.iter().find(|it| it.image >= self.len) {
            let expected = format!("an image below {}", self.len);
            return Err(TrainError::Data { expected, got: format!("image {}", pick.image) });
        }
        match &self.store {
            Store::Cache(cache) => cache.batch(picks, device),
            Store::Memory { latents, labels } => {
                if picks.iter().any(|it| it.flipped) {
                    let (expected, got) = ("images as they are in memory", "a mirrored one");
                    return Err(TrainError::Data { expected: expected.to_owned(), got: got.to_owned() });
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
    for block in labels.chunks(BLOCK) {
        hasher.update(block.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>());
    }
    for block in latents.chunks(BLOCK) {
        hasher.update(block.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>());
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
