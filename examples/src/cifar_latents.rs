//! CIFAR-10 as latents of the tiny autoencoder, normalised a channel, cached on disk.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use ddt_adapters::{Autoencoder, TinyEncoder, from_rgb8};
use ddt_checkpoint::{Checkpoint, sha256_file, write_safetensors};
use ddt_model::LatentInfo;
use ddt_train::LatentDataset;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    cifar::{Cifar, CifarSplit, IMAGE_BYTES, SIDE, read_cifar},
    generate::Interrupted,
    progress::{Cancel, say},
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

/// The archive that a cache was made from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    bytes: u64,
    sha256: String,
}

impl Source {
    fn of(archive: &Path) -> Result<Self> {
        let bytes = std::fs::metadata(archive)
            .with_context(|| format!("cannot read the archive {}", archive.display()))?
            .len();
        Ok(Self { bytes, sha256: sha256_file(archive)? })
    }
}

/// Reads the cache, or encodes the archive and writes the cache.
///
/// A cache is enough: the archive may be missing then. If it is there, it must be the one that the cache was
/// made from.
///
/// # Errors
///
/// When neither can be read, the cache belongs to another archive, or it cannot be written; [`Interrupted`] if
/// `cancel` is requested while encoding, and then nothing is written.
pub fn load(archive: &Path, cache: &Path, encoder: &TinyEncoder, cancel: &Cancel) -> Result<CifarLatents> {
    if !cache.exists() {
        let source = Source::of(archive)?;
        encode(&read_cifar(archive)?, &source, cache, encoder, cancel)?;
    }
    let (latents, source) = read(cache)
        .with_context(|| format!("{} is no cache of latents: delete it to make it anew", cache.display()))?;
    if archive.exists() && Source::of(archive)? != source {
        bail!(
            "{} was made from an archive of SHA-256 {}, and {} is another: name that archive with --archive, \
             or delete the cache to make it anew, for a new run",
            cache.display(),
            source.sha256,
            archive.display()
        );
    }
    Ok(latents)
}

fn encode(
    photos: &Cifar,
    source: &Source,
    cache: &Path,
    encoder: &TinyEncoder,
    cancel: &Cancel,
) -> Result<()> {
    if let Some(folder) = cache.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let train = encode_split(&photos.train, "training", encoder, cancel)?;
    let test = encode_split(&photos.test, "test", encoder, cancel)?;
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
        ("archive".to_owned(), serde_json::to_string(source)?),
        ("latents".to_owned(), serde_json::to_string(&info)?),
        ("classes".to_owned(), serde_json::to_string(&photos.train.class_names)?),
    ]);
    write_safetensors(cache, &tensors, &metadata)?;
    Ok(())
}

fn encode_split(split: &CifarSplit, name: &str, encoder: &TinyEncoder, cancel: &Cancel) -> Result<Tensor> {
    let (start, done) = (Instant::now(), AtomicUsize::new(0));
    let encode = |photos: &[u8]| -> Result<Tensor> {
        if cancel.is_requested() {
            return Err(Interrupted.into());
        }
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

fn read(cache: &Path) -> Result<(CifarLatents, Source)> {
    let file = Checkpoint::open(cache)?;
    let described =
        |key: &str| file.metadata().get(key).with_context(|| format!("it lacks metadata {key:?}"));
    let source = serde_json::from_str(described("archive")?)?;
    let info: LatentInfo = serde_json::from_str(described("latents")?)?;
    ensure!(
        info.mean.iter().all(|it| it.is_finite()) && info.std.iter().all(|it| it.is_finite() && *it > 0.0),
        "expected finite means, and standard deviations above 0"
    );
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
    let latents = CifarLatents { train: split("train")?, test: split("test")?, info, classes };
    Ok((latents, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assets;

    fn split(images: usize) -> CifarSplit {
        CifarSplit {
            images: (0..images * IMAGE_BYTES).map(|it| (it % 251) as u8).collect(),
            labels: (0..images).map(|it| (it % 2) as u8).collect(),
            class_names: vec!["cat".to_owned(), "dog".to_owned()],
        }
    }

    #[test]
    fn a_cache_stands_for_its_archive_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, cache) = (folder.path().join("photos.tar.gz"), folder.path().join("cache"));
        let (encoder, cancel) = (assets::tiny_encoder().unwrap(), Cancel::default());
        std::fs::write(&archive, "one").unwrap();
        let photos = Cifar { train: split(4), test: split(2) };
        encode(&photos, &Source::of(&archive).unwrap(), &cache, &encoder, &cancel).unwrap();
        let load = || load(&archive, &cache, &encoder, &cancel);
        let latents = load().unwrap();
        assert_eq!((latents.train.len(), latents.test.len(), latents.classes.len()), (4, 2, 2));
        std::fs::write(&archive, "two").unwrap();
        let message = load().unwrap_err().to_string();
        assert!(message.contains("--archive"), "{message}");
        std::fs::remove_file(&archive).unwrap();
        assert_eq!(load().unwrap().train.sha256(), latents.train.sha256());
    }

    #[test]
    fn a_request_to_stop_ends_encoding_and_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let cancel = Cancel::default();
        cancel.request();
        let source = Source { bytes: 0, sha256: String::new() };
        let photos = Cifar { train: split(2), test: split(2) };
        let stopped = encode(&photos, &source, &cache, &assets::tiny_encoder().unwrap(), &cancel);
        assert!(stopped.unwrap_err().is::<Interrupted>());
        assert!(!cache.exists());
    }
}
