//! Reading a finished cache.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use ddt_files::{Checkpoint, sha256_file};

use crate::{
    alignment::Features,
    data::Batch,
    epoch_order::Pick,
    error::TrainError,
    latent_cache::index::{CacheContent, Index, Scale, shard_name},
};

/// A finished cache, open for reading.
#[derive(Debug)]
pub struct LatentCache {
    path: PathBuf,
    index: Index,
    scale: Scale,
    sha256: String,
    shards: Vec<Checkpoint>,
    /// The first image of each shard.
    firsts: Vec<usize>,
    labels: Vec<u32>,
}

impl LatentCache {
    /// Opens the cache in a folder; reads its labels, and of the rest the tables of contents.
    ///
    /// # Errors
    /// [`TrainError::UnfinishedCache`] when not all images are in it; [`TrainError::Damaged`],
    /// [`TrainError::Io`] or [`TrainError::Checkpoint`] when it is not what its index says.
    pub fn open(folder: &Path) -> Result<Self, TrainError> {
        let (mut index, sha256) = Index::read(folder)?;
        let Some(scale) = index.scale.take() else {
            return Err(TrainError::UnfinishedCache { path: folder.to_owned() });
        };
        let fields = index.content.fields();
        let (mut shards, mut firsts, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for (number, shard) in index.shards.iter().enumerate() {
            let path = folder.join(shard_name(number));
            let file = Checkpoint::open(&path)?;
            let damaged = |problem: String| TrainError::Damaged { path: path.clone(), problem };
            for (name, row) in &fields {
                let expected: Vec<usize> = [shard.images].iter().chain(row).copied().collect();
                let got = file.info(name).map(|it| it.shape);
                if got.as_ref() != Some(&expected) {
                    return Err(damaged(format!("expected {name} of shape {expected:?}, got {got:?}")));
                }
            }
            let stored = file.tensor("labels", &Device::Cpu)?;
            if stored.dims() != [shard.images] || stored.dtype() != DType::U32 {
                return Err(damaged(format!("expected {} labels of u32, got {stored:?}", shard.images)));
            }
            firsts.push(labels.len());
            labels.extend(stored.to_vec1::<u32>()?);
            shards.push(file);
        }
        let classes = index.content.classes.len();
        match labels.iter().max() {
            Some(&max) if (max as usize) < classes => {}
            max => {
                let problem = format!("expected labels below {classes}, the largest is {max:?}");
                return Err(TrainError::Damaged { path: folder.to_owned(), problem });
            }
        }
        Ok(Self { path: folder.to_owned(), index, scale, sha256, shards, firsts, labels })
    }

    /// Reads every file and compares it with its hash; `progress` hears how many are done, of how many.
    ///
    /// # Errors
    /// [`TrainError::Damaged`] names the first file that differs.
    pub fn verify(&self, mut progress: impl FnMut(usize, usize)) -> Result<(), TrainError> {
        for (number, shard) in self.index.shards.iter().enumerate() {
            let path = self.path.join(shard_name(number));
            let got = sha256_file(&path)?;
            if got != shard.sha256 {
                let problem = format!("expected SHA-256 {}, got {got}; make the cache anew", shard.sha256);
                return Err(TrainError::Damaged { path, problem });
            }
            progress(number + 1, self.index.shards.len());
        }
        Ok(())
    }

    /// What the latents are.
    pub fn content(&self) -> &CacheContent {
        &self.index.content
    }

    /// Mean and standard deviation of each channel over all images: what batches are normalised with.
    pub fn channel_statistics(&self) -> (&[f64], &[f64]) {
        (&self.scale.mean, &self.scale.std)
    }

    /// The same latents with each channel normalised otherwise: as a network is used to them.
    ///
    /// # Errors
    /// [`TrainError::Data`] unless there are as many finite means and positive deviations as channels.
    pub fn normalised_with(mut self, mean: &[f64], std: &[f64]) -> Result<Self, TrainError> {
        let channels = self.index.content.shape.0;
        let fine = mean.len() == channels
            && std.len() == channels
            && mean.iter().all(|it| it.is_finite())
            && std.iter().all(|it| it.is_finite() && *it > 0.0);
        if !fine {
            return Err(TrainError::Data {
                expected: format!("{channels} finite means and as many positive standard deviations"),
                got: format!("{mean:?} and {std:?}"),
            });
        }
        self.scale = Scale { mean: mean.to_vec(), std: std.to_vec() };
        Ok(self)
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(crate) fn shape(&self) -> (usize, usize, usize) {
        self.index.content.shape
    }

    pub(crate) fn max_label(&self) -> u32 {
        self.labels.iter().copied().max().unwrap_or_default()
    }

    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Images that are known to be there.
    pub(crate) fn batch(&self, picks: &[Pick], device: &Device) -> Result<Batch, TrainError> {
        let content = &self.index.content;
        if !content.flips && picks.iter().any(|it| it.flipped) {
            return Err(TrainError::Data {
                expected: "a cache made with flips, to train on mirrored images".to_owned(),
                got: format!("{} without", self.path.display()),
            });
        }
        let channels = self.shape().0;
        let per_channel = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|it| *it as f32).collect();
            Tensor::from_vec(values, (1, channels, 1, 1), device)
        };
        let std = per_channel(&self.scale.std)?;
        let latents = self.rows("latents", "flipped.latents", picks, device)?;
        let latents = latents.broadcast_sub(&per_channel(&self.scale.mean)?)?.broadcast_div(&std)?;
        let posterior_std = if content.posterior {
            Some(self.rows("std", "flipped.std", picks, device)?.broadcast_div(&std)?)
        } else {
            None
        };
        let features = match content.features {
            None => None,
            Some(shape) => {
                let tokens = self.rows("features", "flipped.features", picks, device)?;
                Some(Features { tokens, grid: shape.grid })
            }
        };
        let labels = picks.iter().map(|it| self.labels[it.image]).collect();
        Ok(Batch { latents, posterior_std, labels, features })
    }

    /// One row an image, in f32.
    fn rows(
        &self,
        plain: &str,
        mirrored: &str,
        picks: &[Pick],
        device: &Device,
    ) -> Result<Tensor, TrainError> {
        let row = |it: &Pick| {
            let shard = self.firsts.partition_point(|first| *first <= it.image).saturating_sub(1);
            let name = if it.flipped { mirrored } else { plain };
            self.shards[shard].rows(name, it.image - self.firsts[shard], 1, &Device::Cpu)
        };
        let rows = picks.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        if rows.is_empty() {
            let (expected, got) = ("one or more images".to_owned(), "none".to_owned());
            return Err(TrainError::Data { expected, got });
        }
        Ok(Tensor::cat(&rows, 0)?.to_dtype(DType::F32)?.to_device(device)?)
    }
}
