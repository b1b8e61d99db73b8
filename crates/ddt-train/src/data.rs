//! Training data in memory, and the order it is seen in.

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};
use ddt_flow::{CounterNoise, Purpose};

use crate::error::TrainError;

/// Latents and their labels, ready for the network: scaled as it is trained.
#[derive(Debug)]
pub struct LatentDataset {
    latents: Vec<f32>,
    labels: Vec<u32>,
    shape: (usize, usize, usize),
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
    /// [`TrainError::Data`] when there are none, or as many labels do not fit.
    pub fn new(
        latents: Vec<f32>,
        labels: Vec<u32>,
        shape: (usize, usize, usize),
    ) -> Result<Self, TrainError> {
        let (c, h, w) = shape;
        let wanted = labels.len().checked_mul(c * h * w);
        if labels.is_empty() || wanted != Some(latents.len()) || u32::try_from(labels.len()).is_err() {
            return Err(TrainError::Data {
                expected: format!("one or more images of {shape:?}, as many as the {} labels", labels.len()),
                got: format!("{} numbers", latents.len()),
            });
        }
        Ok(Self { latents, labels, shape, order: Mutex::new(None) })
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
        self.labels.iter().copied().max().unwrap_or(0)
    }

    /// The images `first..first + count` of an endless run through the data: epoch after epoch, each
    /// in an order of its own that depends on `seed` and the epoch alone.
    pub fn training_batch(
        &self,
        seed: u64,
        first: u64,
        count: usize,
        device: &Device,
    ) -> Result<Batch, TrainError> {
        let len = self.len() as u64;
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let mut images = Vec::with_capacity(count);
        for n in first..first + count as u64 {
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
    /// [`TrainError::Data`] when there is no such image.
    pub fn batch(&self, images: &[usize], device: &Device) -> Result<Batch, TrainError> {
        let (c, h, w) = self.shape;
        let size = c * h * w;
        let mut latents = Vec::with_capacity(images.len() * size);
        let mut labels = Vec::with_capacity(images.len());
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
