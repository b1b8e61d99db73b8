//! Latent cache: latents on disk, encoded once and trained on often.
//!
//! ```text
//! cache/
//!   index.json                 what the latents are, and every shard with its SHA-256
//!   shard-00000.safetensors    labels (N), latents (N, C, H, W), and where there are any:
//!                              std, features, and each of these again for the mirrored images
//! ```
//!
//! A [`LatentCacheWriter`](crate::LatentCacheWriter) fills it shard by shard and resumes where it was stopped;
//! the index states whether the cache is finished. A [`LatentCache`] reads single rows from disk, so a cache
//! may be larger than memory.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use ddt_files::{Checkpoint, FileSystem, read_file, sha256, sha256_file};
use serde::{Deserialize, Serialize};

use crate::{
    batch::{Batch, Features, Pick},
    error::TrainError,
};

/// Content of a cache; two caches with the same content are interchangeable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheContent {
    /// Sources of the latents: images, crop and autoencoder, each with its identity.
    pub made_from: BTreeMap<String, String>,
    /// Names of the classes, in label order.
    pub classes: Vec<String>,
    /// Channels, height and width of an image's latents.
    pub shape: (usize, usize, usize),
    /// Whether each image has standard deviations beside its means.
    pub posterior: bool,
    /// Whether each image is also stored mirrored.
    pub flips: bool,
    /// Sizes of a frozen network's features, if they are cached.
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
    /// Numbers per image, mirrored ones and features included.
    pub fn values_per_image(&self) -> usize {
        self.fields().iter().map(|it| it.1.iter().product::<usize>()).sum()
    }

    /// The tensors of a shard beside its labels: names, and shapes without the first axis.
    pub(crate) fn fields(&self) -> Vec<(String, Vec<usize>)> {
        let (c, h, w) = self.shape;
        let mut fields = vec![("latents".to_owned(), vec![c, h, w])];
        fields.extend(self.posterior.then(|| ("std".to_owned(), vec![c, h, w])));
        fields.extend(self.features.map(|it| ("features".to_owned(), vec![it.grid.0 * it.grid.1, it.dim])));
        if self.flips {
            let mirrored: Vec<_> =
                fields.iter().map(|it| (format!("{MIRRORED}{}", it.0), it.1.clone())).collect();
            fields.extend(mirrored);
        }
        fields
    }

    /// Why a cache of this content cannot exist, if it cannot.
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
    /// Images read from the source up to the end of this shard, skipped ones included.
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

/// Normalisation of each channel: `(x - mean) / std`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scale {
    pub(crate) mean: Vec<f64>,
    pub(crate) std: Vec<f64>,
}

impl Scale {
    /// Whether there are as many finite means and positive deviations as channels.
    fn fits(&self, channels: usize) -> bool {
        let sizes = self.mean.len() == channels && self.std.len() == channels;
        sizes && self.mean.iter().chain(&self.std).all(|x| x.is_finite()) && self.std.iter().all(|x| *x > 0.0)
    }
}

const VERSION: u32 = 1;

/// Prefix of the tensors of mirrored images.
pub(crate) const MIRRORED: &str = "flipped.";

pub(crate) const INDEX: &str = "index.json";

/// 100 bytes per shard, and 2^24 names of classes.
const MAX_INDEX_BYTES: u64 = 1 << 30;

impl Index {
    pub(crate) fn new(content: CacheContent) -> Self {
        Self { version: VERSION, content, scale: None, shards: Vec::new() }
    }

    pub(crate) fn write(&self, system: &FileSystem, folder: &Path) -> Result<(), TrainError> {
        let written = |file: &mut dyn std::io::Write| Ok(serde_json::to_writer_pretty(file, self)?);
        Ok(system.atomic_write(&folder.join(INDEX), written)?)
    }

    /// The index, and the SHA-256 of its file.
    pub(crate) fn read(folder: &Path) -> Result<(Self, String), TrainError> {
        let path = folder.join(INDEX);
        let json = read_file(&path, MAX_INDEX_BYTES)?;
        let damaged = |problem: String| TrainError::Unusable { path: path.clone(), problem };
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
        if !index.scale.as_ref().is_none_or(|it| it.fits(channels)) {
            return Err(damaged(format!("expected {channels} finite means and positive deviations")));
        }
        Ok((index, sha256(&json)))
    }
}

/// The name of a shard's file.
pub(crate) fn shard_name(number: usize) -> String {
    format!("shard-{number:05}.safetensors")
}

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
    /// Opens the cache in a folder; reads its labels, and of the other tensors only names and shapes.
    ///
    /// # Errors
    /// [`TrainError::Unusable`] or [`TrainError::File`] when it is unfinished or
    /// contradicts its index.
    pub fn open(folder: &Path) -> Result<Self, TrainError> {
        let (mut index, sha256) = Index::read(folder)?;
        let Some(scale) = index.scale.take() else {
            let problem = "the cache is not finished: run the command that began it again".to_owned();
            return Err(TrainError::Unusable { path: folder.to_owned(), problem });
        };
        let fields = index.content.fields();
        let (mut shards, mut firsts, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for (number, shard) in index.shards.iter().enumerate() {
            let path = folder.join(shard_name(number));
            let file = Checkpoint::open(&path)?;
            let damaged = |problem: String| TrainError::Unusable { path: path.clone(), problem };
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
                return Err(TrainError::Unusable { path: folder.to_owned(), problem });
            }
        }
        Ok(Self { path: folder.to_owned(), index, scale, sha256, shards, firsts, labels })
    }

    /// Reads every file and compares it with its hash; `progress` is given the files done and their total.
    ///
    /// # Errors
    /// [`TrainError::Unusable`] names the first file that differs.
    pub fn verify(&self, progress: impl FnMut(usize, usize)) -> Result<(), TrainError> {
        self.verify_some(0, 1, progress)
    }

    /// [`verify`](Self::verify), but only every `every`-th file from `first` on.
    pub(crate) fn verify_some(
        &self,
        first: usize,
        every: usize,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<(), TrainError> {
        for (number, shard) in self.index.shards.iter().enumerate().skip(first).step_by(every) {
            let path = self.path.join(shard_name(number));
            let got = sha256_file(&path)?;
            if got != shard.sha256 {
                let problem = format!("expected SHA-256 {}, got {got}; make the cache anew", shard.sha256);
                return Err(TrainError::Unusable { path, problem });
            }
            progress(number + 1, self.index.shards.len());
        }
        Ok(())
    }

    /// Content of the cache.
    pub fn content(&self) -> &CacheContent {
        &self.index.content
    }

    /// Mean and standard deviation of each channel over all images, with which batches are normalised.
    pub fn channel_statistics(&self) -> (&[f64], &[f64]) {
        (&self.scale.mean, &self.scale.std)
    }

    /// The same latents with another normalisation of the channels: the one a network was trained with.
    ///
    /// # Errors
    /// [`TrainError::Data`] unless there are as many finite means and positive deviations as channels.
    pub fn normalised_with(mut self, mean: &[f64], std: &[f64]) -> Result<Self, TrainError> {
        let channels = self.index.content.shape.0;
        self.scale = Scale { mean: mean.to_vec(), std: std.to_vec() };
        if self.scale.fits(channels) {
            return Ok(self);
        }
        let expected = format!("{channels} finite means and as many positive standard deviations");
        Err(TrainError::data(expected, format!("{mean:?} and {std:?}")))
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(crate) fn shape(&self) -> (usize, usize, usize) {
        self.index.content.shape
    }

    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// A batch of images that exist.
    pub(crate) fn batch(&self, picks: &[Pick], device: &Device) -> Result<Batch, TrainError> {
        let content = &self.index.content;
        if !content.flips && picks.iter().any(|it| it.flipped) {
            let got = format!("{} without", self.path.display());
            return Err(TrainError::data("a cache made with flips, to train on mirrored images", got));
        }
        let channels = self.shape().0;
        let per_channel = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|it| *it as f32).collect();
            Tensor::from_vec(values, (1, channels, 1, 1), device)
        };
        let std = per_channel(&self.scale.std)?;
        let latents = self.rows("latents", picks, device)?;
        let latents = latents.broadcast_sub(&per_channel(&self.scale.mean)?)?.broadcast_div(&std)?;
        let posterior_std = match content.posterior {
            true => Some(self.rows("std", picks, device)?.broadcast_div(&std)?),
            false => None,
        };
        let features = |shape: FeatureShape| {
            Ok::<_, TrainError>(Features { tokens: self.rows("features", picks, device)?, grid: shape.grid })
        };
        let features = content.features.map(features).transpose()?;
        let labels = picks.iter().map(|it| self.labels[it.image]).collect();
        Ok(Batch { latents, posterior_std, labels, features })
    }

    /// One row per image, in f32.
    fn rows(&self, field: &str, picks: &[Pick], device: &Device) -> Result<Tensor, TrainError> {
        let mirrored = format!("{MIRRORED}{field}");
        let row = |it: &Pick| {
            let shard = self.firsts.partition_point(|first| *first <= it.image).saturating_sub(1);
            let name = if it.flipped { mirrored.as_str() } else { field };
            self.shards[shard].rows(name, it.image - self.firsts[shard], 1, &Device::Cpu)
        };
        let rows = picks.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        if rows.is_empty() {
            return Err(TrainError::data("one or more images", "none"));
        }
        Ok(Tensor::cat(&rows, 0)?.to_dtype(DType::F32)?.to_device(device)?)
    }
}
