//! Writing a latent cache, shard by shard, so that a kill loses at most one shard.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use ddt_files::{Checkpoint, DiskFile, FileSystem};

use crate::{
    error::TrainError,
    latent_cache::{CacheContent, INDEX, Index, Scale, Shard, shard_name},
};

/// A cache that is being filled.
#[derive(Debug)]
pub struct LatentCacheWriter {
    system: FileSystem,
    folder: PathBuf,
    index: Index,
    dtype: DType,
    shard_images: usize,
    waiting: Vec<EncodedImages>,
    source_end: u64,
    _lock: DiskFile,
}

/// Some images to add to a cache.
#[derive(Debug, Clone)]
pub struct EncodedImages {
    /// One label per image.
    pub labels: Vec<u32>,
    /// `latents`, and depending on the content `std`, `features`, and all of them again with the prefix
    /// `flipped.`; the first axis counts images.
    pub fields: BTreeMap<String, Tensor>,
}

impl LatentCacheWriter {
    /// Begins a cache in a folder, or resumes the one that was begun there; a finished one takes no more
    /// images.
    ///
    /// Numbers are stored as `dtype`, `shard_images` images per file.
    ///
    /// # Errors
    /// [`TrainError::Unusable`] when the folder has a cache of other content; [`TrainError::Locked`] while
    /// another process fills it.
    pub fn open(
        folder: &Path,
        content: CacheContent,
        dtype: DType,
        shard_images: usize,
    ) -> Result<Self, TrainError> {
        Self::open_on(&FileSystem::default(), folder, content, dtype, shard_images)
    }

    /// [`open`](Self::open) through another file layer than the real disk's.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(
        system: &FileSystem,
        folder: &Path,
        content: CacheContent,
        dtype: DType,
        shard_images: usize,
    ) -> Result<Self, TrainError> {
        system.create_folders(folder)?;
        let lock = system.open(&folder.join("cache.lock"))?;
        if !lock.try_lock()? {
            return Err(TrainError::Locked { path: folder.to_owned() });
        }
        let index = if folder.join(INDEX).exists() {
            let (index, _) = Index::read(folder)?;
            check_same(folder, &content, &index.content)?;
            index
        } else {
            let index = Index::new(content);
            index.write(system, folder)?;
            index
        };
        let source_end = index.shards.last().map_or(0, |it| it.source_end);
        let shard_images = shard_images.max(1);
        Ok(Self {
            system: system.clone(),
            folder: folder.to_owned(),
            index,
            dtype,
            shard_images,
            waiting: Vec::new(),
            source_end,
            _lock: lock,
        })
    }

    /// Whether all images are stored.
    pub fn is_finished(&self) -> bool {
        self.index.scale.is_some()
    }

    /// Images read from the source so far: where to resume.
    pub fn source_end(&self) -> u64 {
        self.source_end
    }

    /// Adds images, or none; `source_end` counts the images read from the source so far, skipped ones included.
    ///
    /// # Errors
    /// [`TrainError::Data`] when the tensors are not those of the content; [`TrainError::File`] when
    /// a file cannot be written: the cache is then unchanged, and can be resumed.
    pub fn push(&mut self, images: EncodedImages, source_end: u64) -> Result<(), TrainError> {
        self.index.content.check(&images)?;
        let count = images.labels.len();
        if count > 0 {
            self.waiting.push(images);
        }
        self.source_end = source_end;
        if self.waiting.iter().map(|it| it.labels.len()).sum::<usize>() >= self.shard_images {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes the last shard, measures the channels, and marks the cache as finished.
    ///
    /// # Errors
    /// [`TrainError::Data`] when there are no images; [`TrainError::File`] when a file fails.
    pub fn finish(mut self) -> Result<(), TrainError> {
        if self.is_finished() {
            return Ok(());
        }
        self.flush()?;
        self.index.scale = Some(self.measure()?);
        self.index.write(&self.system, &self.folder)
    }

    fn flush(&mut self) -> Result<(), TrainError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut tensors = BTreeMap::new();
        for (name, _) in self.index.content.fields() {
            let parts = self.waiting.iter().filter_map(|it| it.fields.get(&name));
            let parts: Vec<Tensor> = parts.map(|it| it.to_dtype(self.dtype)).collect::<Result<_, _>>()?;
            tensors.insert(name, Tensor::cat(&parts, 0)?);
        }
        let labels: Vec<u32> = self.waiting.iter().flat_map(|it| it.labels.iter().copied()).collect();
        let images = labels.len();
        tensors.insert("labels".to_owned(), Tensor::from_vec(labels, images, &Device::Cpu)?);
        let path = self.folder.join(shard_name(self.index.shards.len()));
        let sha256 = self.system.write_safetensors(&path, &tensors, &BTreeMap::new())?;
        self.index.shards.push(Shard { images, source_end: self.source_end, sha256 });
        self.index.write(&self.system, &self.folder)?;
        self.waiting.clear();
        Ok(())
    }

    /// Mean and deviation of each channel over all images and positions, shard by shard in f64.
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
            return Err(TrainError::data("one or more images", "none"));
        }
        let mean: Vec<f64> = sum.iter().map(|it| it / count as f64).collect();
        let variance = squares.iter().zip(&mean).map(|(it, mean)| it / count as f64 - mean * mean);
        // A constant channel is not scaled.
        let std = variance.map(|it| if it > 1e-12 { it.sqrt() } else { 1.0 }).collect();
        let scale = Scale { mean, std };
        if scale.mean.iter().chain(&scale.std).all(|it| it.is_finite()) {
            return Ok(scale);
        }
        Err(TrainError::data("finite latents", "an infinite one or NaN"))
    }
}

impl CacheContent {
    /// # Errors
    /// [`TrainError::Data`] when the tensors are not those of the content.
    pub(crate) fn check(&self, images: &EncodedImages) -> Result<(), TrainError> {
        let count = images.labels.len();
        let fields = if count > 0 { self.fields() } else { Vec::new() };
        for (name, row) in fields {
            let expected: Vec<usize> = [count].into_iter().chain(row).collect();
            let got = images.fields.get(&name).map(|it| it.dims().to_vec());
            if got.as_ref() != Some(&expected) {
                let got = got.map_or("none".to_owned(), |it| format!("{it:?}"));
                return Err(TrainError::data(format!("{name} of shape {expected:?}"), got));
            }
        }
        let classes = self.classes.len();
        match images.labels.iter().find(|it| **it as usize >= classes) {
            Some(label) => Err(TrainError::data(format!("labels below {classes}"), label.to_string())),
            None => Ok(()),
        }
    }
}

fn check_same(folder: &Path, expected: &CacheContent, got: &CacheContent) -> Result<(), TrainError> {
    if expected == got {
        return Ok(());
    }
    let mut keys = expected.made_from.keys().chain(got.made_from.keys());
    let key = keys.find(|key| expected.made_from.get(*key) != got.made_from.get(*key));
    let describe = |it: &CacheContent| match key {
        Some(key) => format!("{key} {}", it.made_from.get(key).map_or("none", String::as_str)),
        None => format!(
            "{} classes, shape {:?}, posterior {}, flips {}, features {:?}",
            it.classes.len(),
            it.shape,
            it.posterior,
            it.flips,
            it.features
        ),
    };
    let (expected, got) = (describe(expected), describe(got));
    let problem = format!(
        "a cache of other latents: expected {expected}, got {got}; name another folder, or remove this one"
    );
    Err(TrainError::Unusable { path: folder.to_owned(), problem })
}
