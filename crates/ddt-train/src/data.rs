//! Training data in memory, and the order it is seen in.

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};
use ddt_flow::{CounterNoise, Purpose};
use sha2::{Digest, Sha256};

use crate::{config::TrainConfig, error::TrainError};

/// Latents and their labels, ready for the network: scaled as it is trained.
#[derive(Debug)]
pub struct LatentDataset {
    latents: Vec<f32>,
    labels: Vec<u32>,
    shape: (usize, usize, usize),
    max_label: u32,
    sha256: String,
    // The order of the epoch asked for last: it is asked for again by nearly every batch.
    order: Mutex<Option<(u64, u64, Vec<usize>)>>,
}

/// Some images of a dataset.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `(B, C, H, W)` f32.
    pub latents: Tensor,
    /// One an image.
    pub labels: Vec<u32>,
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
        let sha256 = hash(&latents, &labels, shape);
        Ok(Self { latents, labels, shape, max_label, sha256, order: Mutex::new(None) })
    }

    /// Images in it.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Never true: a dataset has an image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Channels, height and width of an image.
    pub fn shape(&self) -> (usize, usize, usize) {
        self.shape
    }

    /// The largest label.
    pub fn max_label(&self) -> u32 {
        self.max_label
    }

    /// SHA-256 of shape, labels and latents in lower-case hexadecimal: what the data is, wherever it
    /// was read from.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The images `first..first + count` of an endless run through the data: epoch after epoch, each
    /// in an order of its own that depends on `seed` and the epoch alone.
    ///
    /// # Errors
    /// [`TrainError::Data`] when `count` is above 2^20 or the run has no such images;
    /// [`TrainError::Candle`] when the tensor cannot be made.
    pub fn training_batch(
        &self,
        seed: u64,
        first: u64,
        count: usize,
        device: &Device,
    ) -> Result<Batch, TrainError> {
        let len = self.len() as u64;
        let end = first.checked_add(count as u64).filter(|_| count <= TrainConfig::MAX_BATCH_SIZE);
        let end = end.ok_or_else(|| TrainError::Data {
            expected: format!("a batch of at most {} images", TrainConfig::MAX_BATCH_SIZE),
            got: format!("{count} images from {first}"),
        })?;
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let mut images = Vec::with_capacity(count);
        for n in first..end {
            let epoch = n / len;
            if order.as_ref().is_none_or(|it| (it.0, it.1) != (seed, epoch)) {
                let shuffled = CounterNoise::new(seed, Purpose::Order, epoch, 0).permutation(self.len());
                *order = Some((seed, epoch, shuffled));
            }
            let position = (n % len) as usize;
            images.extend(order.as_ref().map(|it| it.2[position]));
        }
        self.batch(&images, device)
    }

    /// The images named, in that order.
    ///
    /// # Errors
    /// [`TrainError::Data`] when there is no such image; [`TrainError::Candle`] when the tensor cannot
    /// be made.
    pub fn batch(&self, images: &[usize], device: &Device) -> Result<Batch, TrainError> {
        let (c, h, w) = self.shape;
        let size = c * h * w;
        let (mut latents, mut labels) = (Vec::new(), Vec::new());
        for &image in images {
            let Some(&label) = self.labels.get(image) else {
                return Err(TrainError::Data {
                    expected: format!("an image below {}", self.len()),
                    got: format!("image {image}"),
                });
            };
            labels.push(label);
            latents.extend_from_slice(&self.latents[image * size..(image + 1) * size]);
        }
        Ok(Batch { latents: Tensor::from_vec(latents, (images.len(), c, h, w), device)?, labels })
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
