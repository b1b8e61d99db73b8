//! CIFAR-10 as latents of the tiny autoencoder, normalised a channel, cached on disk.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use ddt_adapters::{Autoencoder, TinyEncoder, from_rgb8};
use ddt_checkpoint::{Checkpoint, write_safetensors};
use ddt_model::LatentInfo;
use ddt_train::LatentDataset;
use rayon::prelude::*;

use crate::{
    cifar::{Cifar, CifarSplit, IMAGE_BYTES, SIDE, read_cifar},
    progress::say,
};

/// Photos a call of the autoencoder: enough to fill its products, few enough to stay in cache.
const BATCH: usize = 64;

/// Training and test latents, in the scale a network is trained on.
#[derive(Debug)]
pub struct CifarLatents {
    /// 50,000 images to train on.
    pub train: LatentDataset,
    /// 10,000 images kept back.
    pub test: LatentDataset,
    /// Where the latents come from, and how they were normalised.
    pub info: LatentInfo,
    /// The ten classes, in label order.
    pub classes: Vec<String>,
}

/// Reads the cache, or encodes the archive and writes the cache.
///
/// # Errors
///
/// When neither can be read, or the cache cannot be written.
pub fn load(archive: &Path, cache: &Path, encoder: &TinyEncoder) -> Result<CifarLatents> {
    if !cache.exists() {
        let photos = read_cifar(archive)?;
        encode(&photos, cache, encoder)?;
    }
    read(cache)
        .with_context(|| format!("{} is no cache of latents: delete it to make it anew", cache.display()))
}

fn encode(photos: &Cifar, cache: &Path, encoder: &TinyEncoder) -> Result<()> {
    if let Some(folder) = cache.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let train = encode_split(&photos.train, "training", encoder)?;
    let test = encode_split(&photos.test, "test", encoder)?;
    // Statistics of the training split alone; the test split is not to be known in advance.
    let (mean, std) = channel_statistics(&train)?;
    let (_, _, height, width) = train.dims4()?;
    let info = LatentInfo { autoencoder: "tiny-flux2".to_owned(), height, width, mean, std };
    let labels = |split: &CifarSplit| Tensor::from_slice(&split.labels, split.labels.len(), &Device::Cpu);
    let tensors = BTreeMap::from([
        ("train.latents".to_owned(), train.to_dtype(DType::F16)?),
        ("train.labels".to_owned(), labels(&photos.train)?),
        ("test.latents".to_owned(), test.to_dtype(DType::F16)?),
        ("test.labels".to_owned(), labels(&photos.test)?),
    ]);
    let metadata = BTreeMap::from([
        ("latents".to_owned(), serde_json::to_string(&info)?),
        ("classes".to_owned(), serde_json::to_string(&photos.train.class_names)?),
    ]);
    write_safetensors(cache, &tensors, &metadata)?;
    Ok(())
}

fn encode_split(split: &CifarSplit, name: &str, encoder: &TinyEncoder) -> Result<Tensor> {
    let (start, done) = (Instant::now(), AtomicUsize::new(0));
    let encode = |photos: &[u8]| -> Result<Tensor> {
        let pixels = photos.chunks(IMAGE_BYTES).map(|it| from_rgb8(it, (SIDE, SIDE), &Device::Cpu));
        let latents = encoder.encode(&Tensor::cat(&pixels.collect::<Result<Vec<_>, _>>()?, 0)?)?;
        let batch = photos.len() / IMAGE_BYTES;
        let done = done.fetch_add(batch, Ordering::Relaxed) + batch;
        if (done / BATCH).is_multiple_of(40) {
            let rate = done as f64 / start.elapsed().as_secs_f64();
            say(&format!("encoded {done} of {} {name} photos, {rate:.0} a second", split.labels.len()));
        }
        Ok(latents)
    };
    // Batches side by side: a batch alone is too small to keep every core at work.
    let latents = split.images.par_chunks(BATCH * IMAGE_BYTES).map(encode);
    Ok(Tensor::cat(&latents.collect::<Result<Vec<_>>>()?, 0)?)
}

/// Mean and standard deviation of each channel of `(N, C, H, W)`, in f64.
fn channel_statistics(latents: &Tensor) -> Result<(Vec<f32>, Vec<f32>)> {
    let (_, c, _, _) = latents.dims4()?;
    let by_channel = latents.to_dtype(DType::F64)?.transpose(0, 1)?.reshape((c, ()))?; // (C, N H W)
    let mean = by_channel.mean_keepdim(1)?;
    let std = by_channel.broadcast_sub(&mean)?.sqr()?.mean(1)?.sqrt()?;
    let list = |it: Tensor| -> Result<Vec<f32>> { Ok(it.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?) };
    Ok((list(mean)?, list(std)?))
}

fn read(cache: &Path) -> Result<CifarLatents> {
    let file = Checkpoint::open(cache)?;
    let described =
        |key: &str| file.metadata().get(key).with_context(|| format!("it lacks metadata {key:?}"));
    let info: LatentInfo = serde_json::from_str(described("latents")?)?;
    let classes = serde_json::from_str(described("classes")?)?;
    let split = |name: &str| -> Result<LatentDataset> {
        let latents = file.tensor(&format!("{name}.latents"), &Device::Cpu)?.to_dtype(DType::F32)?;
        let (_, c, h, w) = latents.dims4()?;
        ensure!(info.mean.len() == c && info.std.len() == c, "expected statistics of {c} channels");
        let per_channel = |it: &[f32]| Tensor::from_slice(it, (1, c, 1, 1), &Device::Cpu);
        let scaled =
            latents.broadcast_sub(&per_channel(&info.mean)?)?.broadcast_div(&per_channel(&info.std)?)?;
        let labels = file.tensor(&format!("{name}.labels"), &Device::Cpu)?.to_dtype(DType::U32)?.to_vec1()?;
        Ok(LatentDataset::new(scaled.flatten_all()?.to_vec1()?, labels, (c, h, w))?)
    };
    Ok(CifarLatents { train: split("train")?, test: split("test")?, info, classes })
}
