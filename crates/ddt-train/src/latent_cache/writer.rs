//! Filling a cache, in pieces that survive a kill.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use ddt_files::{Checkpoint, write_safetensors};

use crate::{
    durable::{create_folder, io_error},
    error::TrainError,
    latent_cache::index::{CacheContent, INDEX, Index, Scale, Shard, shard_name},
};

/// A cache that is being filled.
#[derive(Debug)]
pub struct LatentCacheWriter {
    folder: PathBuf,
    index: Index,
    dtype: DType,
    shard_images: usize,
    waiting: Vec<EncodedImages>,
    source_end: u64,
    _lock: File,
}

/// Some images as they go into a cache.
#[derive(Debug, Clone)]
pub struct EncodedImages {
    /// One an image.
    pub labels: Vec<u32>,
    /// `latents`, and as the content says `std`, `features`, and all of them with `flipped.` before their
    /// names; the first axis counts images.
    pub fields: BTreeMap<String, Tensor>,
}

impl LatentCacheWriter {
    /// Begins a cache in a folder, or goes on with the one that was begun there; a finished one is kept
    /// and takes no more images.
    ///
    /// `dtype` is how numbers are stored; `shard_images` is how many images a file has.
    ///
    /// # Errors
    /// [`TrainError::OtherCache`] when the folder has a cache of other content; [`TrainError::Locked`] while
    /// another process fills it.
    pub fn open(
        folder: &Path,
        content: CacheContent,
        dtype: DType,
        shard_images: usize,
    ) -> Result<Self, TrainError> {
        create_folder(folder)?;
        let path = folder.join("cache.lock");
        let lock = File::create(&path).map_err(io_error("create", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TrainError::Locked { path: folder.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
        }
        let index = if folder.join(INDEX).exists() {
            let (index, _) = Index::read(folder)?;
            check_same(folder, &content, &index.content)?;
            index
        } else {
            let index = Index::new(content);
            index.write(folder)?;
            index
        };
        let source_end = index.shards.last().map_or(0, |it| it.source_end);
        let shard_images = shard_images.max(1);
        Ok(Self {
            folder: folder.to_owned(),
            index,
            dtype,
            shard_images,
            waiting: Vec::new(),
            source_end,
            _lock: lock,
        })
    }

    /// Whether all images are there.
    pub fn is_finished(&self) -> bool {
        self.index.scale.is_some()
    }

    /// How many images of the source have been taken: where to go on.
    pub fn source_end(&self) -> u64 {
        self.source_end
    }

    /// Adds images, or none; `source_end` counts those taken from the source so far, skipped ones included.
    ///
    /// # Errors
    /// [`TrainError::Data`] when the tensors are not those of the content; [`TrainError::Checkpoint`] when
    /// a file cannot be written: the cache is then as it was, and can be gone on with.
    pub fn push(&mut self, images: EncodedImages, source_end: u64) -> Result<(), TrainError> {
        let count = images.labels.len();
        let fields = if count > 0 { self.index.content.fields() } else { Vec::new() };
        for (name, row) in fields {
            let expected: Vec<usize> = [count].into_iter().chain(row).collect();
            let got = images.fields.get(name).map(|it| it.dims().to_vec());
            if got.as_ref() != Some(&expected) {
                let (expected, got) = (format!("{name} of shape {expected:?}"), format!("{got:?}"));
                return Err(TrainError::Data { expected, got });
            }
        }
        let classes = self.index.content.classes.len();
        if let Some(label) = images.labels.iter().find(|it| **it as usize >= classes) {
            let (expected, got) = (format!("labels below {classes}"), label.to_string());
            return Err(TrainError::Data { expected, got });
        }
        if count > 0 {
            self.waiting.push(images);
        }
        self.source_end = source_end;
        if self.waiting.iter().map(|it| it.labels.len()).sum::<usize>() >= self.shard_images {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what is left, measures the channels, and marks the cache as finished.
    ///
    /// # Errors
    /// [`TrainError::Data`] when there are no images; [`TrainError::Checkpoint`] when a file fails.
    pub fn finish(mut self) -> Result<(), TrainError> {
        if self.is_finished() {
            return Ok(());
        }
        self.flush()?;
        self.index.scale = Some(self.measure()?);
        self.index.write(&self.folder)
    }

    fn flush(&mut self) -> Result<(), TrainError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut tensors = BTreeMap::new();
        for (name, _) in self.index.content.fields() {
            let parts = self.waiting.iter().filter_map(|it| it.fields.get(name));
            let parts: Vec<Tensor> = parts.map(|it| it.to_dtype(self.dtype)).collect::<Result<_, _>>()?;
            tensors.insert(name.to_owned(), Tensor::cat(&parts, 0)?);
        }
        let labels: Vec<u32> = self.waiting.iter().flat_map(|it| it.labels.iter().copied()).collect();
        let images = labels.len();
        tensors.insert("labels".to_owned(), Tensor::from_vec(labels, images, &Device::Cpu)?);
        let path = self.folder.join(shard_name(self.index.shards.len()));
        let sha256 = write_safetensors(&path, &tensors, &BTreeMap::new())?;
        self.index.shards.push(Shard { images, source_end: self.source_end, sha256 });
        self.index.write(&self.folder)?;
        self.waiting.clear();
        Ok(())
    }

    /// Mean and deviation of each channel over all images and places, shard by shard in f64.
    fn measure(&self) -> Result<Scale, TrainError> {
        let (c, h, w) = self.index.content.shape;
        let (mut count, mut sum, mut squares) = (0usize, vec![0f64; c], vec![0f64; c]);
        for number in 0..self.index.shards.len() {
            let file = Checkpoint::open(self.folder.join(shard_name(number)))?;
            let latents = file.tensor("latents", &Device::Cpu)?.to_dtype(DType::F32)?;
            let values: Vec<f32> = latents.flatten_all()?.to_vec1()?;
            for (i, plane) in values.chunks_exact((h * w).max(1)).enumerate() {
                let channel = i % c.max(1);
                sum[channel] += plane.iter().map(|it| f64::from(*it)).sum::<f64>();
                squares[channel] += plane.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>();
            }
            count += latents.dim(0)? * h * w;
        }
        if count == 0 {
            let (expected, got) = ("one or more images".to_owned(), "none".to_owned());
            return Err(TrainError::Data { expected, got });
        }
        let mean: Vec<f64> = sum.iter().map(|it| it / count as f64).collect();
        let variance = squares.iter().zip(&mean).map(|(it, mean)| it / count as f64 - mean * mean);
        // A constant channel is left as it is.
        let std = variance.map(|it| if it > 1e-12 { it.sqrt() } else { 1.0 }).collect();
        let scale = Scale { mean, std };
        if scale.mean.iter().chain(&scale.std).all(|it| it.is_finite()) {
            return Ok(scale);
        }
        let (expected, got) = ("finite latents".to_owned(), "an infinite one or NaN".to_owned());
        Err(TrainError::Data { expected, got })
    }
}

fn check_same(folder: &Path, expected: &CacheContent, got: &CacheContent) -> Result<(), TrainError> {
    if expected == got {
        return Ok(());
    }
    let keys = expected.made_from.keys().chain(got.made_from.keys());
    let differs = |key: &&String| expected.made_from.get(*key) != got.made_from.get(*key);
    let what = match keys.into_iter().find(differs) {
        Some(key) => {
            let say = |it: &CacheContent| it.made_from.get(key).cloned().unwrap_or_else(|| "none".to_owned());
            (format!("{key} {}", say(expected)), format!("{key} {}", say(got)))
        }
        None => {
            let say = |it: &CacheContent| {
                format!(
                    "{} classes, shape {:?}, posterior {}, flips {}, features {:?}",
                    it.classes.len(),
                    it.shape,
                    it.posterior,
                    it.flips,
                    it.features
                )
            };
            (say(expected), say(got))
        }
    };
    Err(TrainError::OtherCache { path: folder.to_owned(), expected: what.0, got: what.1 })
}
