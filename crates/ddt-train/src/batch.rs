//! Batches: the images of a step, their latents and features, and their noise.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::Tensor;
use ddt_flow::{CounterNoise, LinearPath, Purpose};
use rayon::prelude::*;

use crate::{config::FlowConfig, error::TrainError, objective::StepAt};

/// Endless order of a set of images: each epoch is a permutation that depends on seed and epoch only.
#[derive(Debug)]
pub struct EpochOrder {
    seed: u64,
    len: usize,
    flips: bool,
    // The last epoch asked for: nearly always the next one asked for too.
    epoch: Mutex<Option<(u64, Vec<usize>)>>,
}

/// An image of an epoch, mirrored or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Its index in the dataset.
    pub image: usize,
    /// Whether it is mirrored.
    pub flipped: bool,
}

impl EpochOrder {
    /// An order of `len` images; with `flips`, each is mirrored in half of the epochs, at random.
    ///
    /// # Errors
    /// [`TrainError::Data`] when there are none.
    pub fn new(seed: u64, len: usize, flips: bool) -> Result<Self, TrainError> {
        if len == 0 {
            return Err(TrainError::data("one or more images", "none"));
        }
        Ok(Self { seed, len, flips, epoch: Mutex::new(None) })
    }

    /// The image at a position of the run.
    pub fn at(&self, position: u64) -> Pick {
        let epoch = position / self.len as u64;
        let place = (position % self.len as u64) as usize;
        let mut cached = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        let order = match cached.take() {
            Some((of, order)) if of == epoch => order,
            _ => CounterNoise::new(self.seed, Purpose::Order, epoch, 0).permutation(self.len),
        };
        // In range: an order has as many places as there are images.
        let image = order.get(place).copied().unwrap_or_default();
        *cached = Some((epoch, order));
        let mirror =
            || CounterNoise::new(self.seed, Purpose::Flip, epoch, image as u64).first_uniform() < 0.5;
        Pick { image, flipped: self.flips && mirror() }
    }

    /// The images at some positions, in order.
    pub fn picks(&self, positions: Range<u64>) -> Vec<Pick> {
        positions.map(|it| self.at(it)).collect()
    }
}

/// Some images of a dataset.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `(B, C, H, W)` f32; the means where an autoencoder gives a distribution.
    pub latents: Tensor,
    /// Standard deviations of that distribution, in the same shape.
    pub posterior_std: Option<Tensor>,
    /// One label per image.
    pub labels: Vec<u32>,
    /// Features of a frozen network to align with.
    pub features: Option<Features>,
}

impl Batch {
    /// Latents sampled from the autoencoder's distribution with the noise at each image's address; the latents
    /// themselves without a distribution.
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

/// Tokens of a frozen network, one grid per image.
#[derive(Debug, Clone)]
pub struct Features {
    /// `(B, rows * columns, F)`, row by row.
    pub tokens: Tensor,
    /// Rows and columns.
    pub grid: (usize, usize),
}

impl Features {
    /// The tokens on another grid, bilinear where the grids differ: `(B, rows * columns, F)`.
    ///
    /// # Errors
    /// Unless there is one token per grid cell.
    pub fn on_grid(&self, grid: (usize, usize)) -> candle_core::Result<Tensor> {
        if self.grid == grid {
            return Ok(self.tokens.clone());
        }
        ddt_flow::resample_tokens(&self.tokens, self.grid, grid)
    }
}

/// A batch with its times, noise and labels: the network's inputs and its target.
#[derive(Debug, Clone)]
pub struct NoisyBatch {
    /// Noisy latents, `(B, C, H, W)`.
    pub x_t: Tensor,
    /// Times, `(B)`.
    pub t: Tensor,
    /// Labels after dropout, `(B)` u32.
    pub labels: Tensor,
    /// Velocity targets, `(B, C, H, W)`.
    pub target: Tensor,
}

impl NoisyBatch {
    /// Draws a training step: a function of seed, step and position in the batch.
    ///
    /// # Errors
    /// [`TrainError::Candle`] when the latents are not `(B, C, H, W)` with a label each.
    pub fn draw(cfg: &FlowConfig, num_classes: usize, batch: &Batch, at: StepAt) -> Result<Self, TrainError> {
        let address = |purpose, image| CounterNoise::new(at.seed, purpose, at.step, at.first + image);
        let images = 0..batch.labels.len() as u64;
        let time = |image| cfg.respaced(cfg.times.draw(&address(Purpose::TrainTime, image)));
        let label = |(image, label): (u64, &u32)| {
            let dropped = address(Purpose::LabelDropout, image).first_uniform() < cfg.label_dropout;
            if dropped { num_classes as u32 } else { *label }
        };
        let times = images.clone().map(time).collect();
        let labels = images.zip(&batch.labels).map(label).collect();
        let latents = batch.sampled(|image| address(Purpose::Posterior, image))?;
        Self::mix(&latents, times, labels, |image| address(Purpose::TrainNoise, image))
    }

    /// Each image at its time, with noise from the address for its position.
    pub(crate) fn mix(
        latents: &Tensor,
        times: Vec<f64>,
        labels: Vec<u32>,
        noise: impl Fn(u64) -> CounterNoise + Sync,
    ) -> Result<Self, TrainError> {
        let noise = normals_like(latents, noise)?;
        let (b, device) = (latents.dim(0)?, latents.device());
        let t: Vec<f32> = times.into_iter().map(|it| it as f32).collect();
        let t = Tensor::from_vec(t, b, device)?;
        Ok(Self {
            x_t: LinearPath.interpolate(latents, &noise, &t)?,
            target: LinearPath.velocity_target(latents, &noise)?,
            labels: Tensor::from_vec(labels, b, device)?,
            t,
        })
    }
}

/// Standard normal numbers in the shape of `latents`, with an address per image.
pub(crate) fn normals_like(
    latents: &Tensor,
    address: impl Fn(u64) -> CounterNoise + Sync,
) -> candle_core::Result<Tensor> {
    let size = latents.dims().iter().skip(1).product::<usize>().max(1);
    let mut values = vec![0f32; latents.elem_count()];
    let images = values.par_chunks_mut(size).enumerate();
    images.for_each(|(image, out)| address(image as u64).fill_normal(out));
    Tensor::from_vec(values, latents.dims(), latents.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_image_once_in_another_order() {
        let order = EpochOrder::new(3, 50, true).unwrap();
        let epoch = |e: u64| order.picks(e * 50..(e + 1) * 50);
        for e in 0..3 {
            let mut images: Vec<usize> = epoch(e).iter().map(|it| it.image).collect();
            assert_ne!(images, (0..50).collect::<Vec<_>>());
            images.sort_unstable();
            assert_eq!(images, (0..50).collect::<Vec<_>>());
        }
        assert_ne!(epoch(0), epoch(1));
        let flipped = epoch(1).iter().filter(|it| it.flipped).count();
        assert!((15..=35).contains(&flipped), "{flipped}");
        // Whatever was asked before.
        assert_eq!(order.picks(45..55), EpochOrder::new(3, 50, true).unwrap().picks(45..55));
        assert!(EpochOrder::new(3, 50, false).unwrap().picks(0..99).iter().all(|it| !it.flipped));
        assert!(EpochOrder::new(3, 0, false).is_err());
    }
}
