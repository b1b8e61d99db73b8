//! From images to the inputs of metrics: one pass, in memory that only the features for precision and recall fill.
//!
//! Features are cached, one npz file per chunk of images, named by a hash of the pixels and of the extractor: an
//! evaluation that was stopped resumes at its chunk, and a reference is measured once.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use candle_core::DType;
use ddt::{
    duration_in_words,
    files::{
        npz::{ArrayData, NpzFile, write_npz},
        sha256,
    },
};
use ddt_dist::Group;
use ddt_metrics::{
    Duplicates, Features, InceptionScore, InceptionScoreAccumulator, Moments, Statistics, predicted_classes,
};

use super::{
    extractor::{Extracted, Extractor, Rows},
    input::{Chunk, Images},
};
use crate::{ranks::agreed, terminal::Terminal};

/// Part of every name; another number when features change for the same weights.
const VERSION: &str = "ddt features 1";

/// A folder of features.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Makes the folder if it is missing.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| {
            format!("--cache: cannot make the folder {}; name another with --cache DIR", folder.display())
        })?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The features of a chunk, from the folder or from the extractor.
    pub(super) fn features(&self, extractor: &Extractor, chunk: &Chunk) -> Result<Extracted> {
        let path = self.path(extractor, chunk);
        if exists(&path)? {
            let read = read(&path, chunk.num_images());
            return read.context("--cache: features are damaged; delete the file");
        }
        extract(&path, extractor, chunk)
    }

    fn path(&self, extractor: &Extractor, chunk: &Chunk) -> PathBuf {
        self.folder.join(format!("{}.npz", name(extractor, chunk)))
    }

    /// Puts the features of all images into the folder, which all ranks see: each takes a chunk in turn.
    ///
    /// Measuring reads them from there, so that its sums have the same order whatever the number of ranks.
    pub(super) fn fill(&self, group: &dyn Group, extractor: &Extractor, images: &Images) -> Result<()> {
        if group.size() == 1 {
            return Ok(());
        }
        let mut at = 0;
        let make = |chunk: &Chunk| {
            let path = self.path(extractor, chunk);
            if exists(&path)? { Ok(()) } else { extract(&path, extractor, chunk).map(drop) }
        };
        let mut own = Ok(());
        images.for_each_chunk(|chunk| {
            if at % group.size() == group.rank() {
                own = make(&chunk);
            }
            at += 1;
            if at % group.size() == 0 { Ok(agreed(group, &own)?) } else { Ok(()) }
        })?;
        Ok(agreed(group, &own)?)
    }
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().with_context(|| format!("cannot read {}", path.display()))
}

/// Computes the features of a chunk, and writes them.
fn extract(path: &Path, extractor: &Extractor, chunk: &Chunk) -> Result<Extracted> {
    let extracted = (extractor.extract)(chunk)?;
    write(path, &extracted, chunk.num_images())?;
    Ok(extracted)
}

fn name(extractor: &Extractor, chunk: &Chunk) -> String {
    let head = format!("{VERSION}\n{}\n{}\n", extractor.name, extractor.weights_sha256);
    sha256(&[head.as_bytes(), &chunk.sha256()].concat())
}

fn write(path: &Path, it: &Extracted, num_images: usize) -> Result<()> {
    let all =
        [("features", Some(&it.features)), ("spatial", it.spatial.as_ref()), ("logits", it.logits.as_ref())];
    let rows: Vec<(&str, [usize; 2], &[f32])> = all
        .into_iter()
        .filter_map(|(name, rows)| rows.map(|it| (name, [num_images, it.size], it.values.as_slice())))
        .collect();
    let arrays: Vec<(&str, &[usize], ArrayData<'_>)> =
        rows.iter().map(|(name, shape, values)| (*name, shape.as_slice(), ArrayData::F32(values))).collect();
    write_npz(path, &arrays).context("--cache")
}

fn read(path: &Path, num_images: usize) -> Result<Extracted> {
    let file = NpzFile::open(path)?;
    let rows = |name: &str| -> Result<Rows> {
        let array = file.array(name)?;
        array.expect_dtype(DType::F32)?;
        array.expect_shape(&[Some(num_images), None])?;
        let size = array.shape()[1];
        ensure!(size > 0, "array {name} in {} has rows of no numbers", path.display());
        let mut rows = array.rows(0..num_images)?;
        let mut bytes = vec![0; num_images * rows.row_bytes()];
        rows.read(&mut bytes)?;
        let number = |it: &[u8]| f32::from_le_bytes([it[0], it[1], it[2], it[3]]);
        Ok(Rows { values: bytes.chunks_exact(4).map(number).collect(), size })
    };
    let optional = |name: &str| file.contains(name).then(|| rows(name)).transpose();
    Ok(Extracted { features: rows("features")?, spatial: optional("spatial")?, logits: optional("logits")? })
}

/// Rows of features that are kept for precision and recall, which compare all pairs.
const MAX_KEPT: usize = 100_000;

/// Measurements of one set of images.
#[derive(Debug)]
pub(super) struct Measured {
    /// Mean and covariance of the features.
    pub(super) statistics: Statistics,
    /// The same of the spatial features.
    pub(super) spatial: Option<Statistics>,
    /// The features themselves, unless there are more than 100,000.
    pub(super) features: Option<Rows>,
    /// Numbers in a row of features.
    pub(super) feature_size: usize,
    /// The score, where the network classifies.
    pub(super) score: Option<InceptionScore>,
    /// The class that the network sees in each image.
    pub(super) predicted: Option<Vec<u32>>,
    /// Images seen before.
    pub(super) duplicates: Duplicates,
    /// Height and width, if all images have one.
    pub(super) size: Option<(usize, usize)>,
    /// SHA-256 over the hashes of all chunks.
    pub(super) sha256: String,
}

/// Measures a set of images; `what` they are is part of the progress.
pub(super) fn measure(
    what: &str,
    images: &Images,
    extractor: &Extractor,
    cache: &Cache,
    split_size: usize,
    terminal: &Terminal,
) -> Result<Measured> {
    let (mut meter, started, total) = (terminal.meter(), Instant::now(), images.num_images);
    let mut sums: Option<Sums> = None;
    let mut kept = (total <= MAX_KEPT).then(Rows::default);
    let mut predicted: Option<Vec<u32>> = None;
    let mut duplicates = Duplicates::new();
    let (mut sizes, mut hashes) = (Vec::new(), Vec::new());
    let mut done = 0;
    images.for_each_chunk(|chunk| {
        let made = cache.features(extractor, &chunk)?;
        let features = view(&made.features, chunk.num_images())?;
        let sums = match &mut sums {
            Some(it) => it,
            None => {
                let spatial = made.spatial.as_ref().map(|it| Moments::new(it.size)).transpose()?;
                let logits =
                    made.logits.as_ref().map(|it| InceptionScoreAccumulator::new(it.size, split_size));
                sums.insert(Sums {
                    features: Moments::new(features.size())?,
                    spatial,
                    score: logits.transpose()?,
                })
            }
        };
        sums.features.push(features)?;
        if let (Some(sum), Some(spatial)) = (&mut sums.spatial, &made.spatial) {
            sum.push(view(spatial, chunk.num_images())?)?;
        }
        if let (Some(score), Some(logits)) = (&mut sums.score, &made.logits) {
            let logits = view(logits, chunk.num_images())?;
            score.push(logits)?;
            predicted.get_or_insert_default().extend(predicted_classes(logits));
        }
        if let Some(kept) = &mut kept {
            kept.size = made.features.size;
            kept.values.extend_from_slice(&made.features.values);
        }
        chunk.images().for_each(|it| duplicates.push(it));
        let size = (chunk.height, chunk.width);
        if !sizes.contains(&size) && sizes.len() < 2 {
            sizes.push(size);
        }
        hashes.extend(chunk.sha256());
        done += chunk.num_images();
        meter.show(done as f64 / total as f64, line(what, done, total, started.elapsed()));
        Ok(())
    })?;
    drop(meter);
    let sums = sums.with_context(|| format!("there are no {what}"))?;
    let feature_size = sums.features.size();
    Ok(Measured {
        statistics: sums.features.finish().with_context(|| what.to_owned())?,
        spatial: sums.spatial.map(Moments::finish).transpose()?,
        features: kept,
        feature_size,
        score: sums.score.map(InceptionScoreAccumulator::finish).transpose()?,
        predicted,
        duplicates,
        size: match sizes.as_slice() {
            [only] => Some(*only),
            _ => None,
        },
        sha256: sha256(&hashes),
    })
}

/// Sums over all rows.
struct Sums {
    features: Moments,
    spatial: Option<Moments>,
    score: Option<InceptionScoreAccumulator>,
}

/// Rows of as many images.
fn view(rows: &Rows, num_images: usize) -> Result<Features<'_>> {
    let features = Features::new(&rows.values, rows.size)?;
    ensure!(
        features.num_rows() == num_images,
        "expected features of {num_images} images, got {} rows",
        features.num_rows()
    );
    Ok(features)
}

fn line(what: &str, done: usize, total: usize, elapsed: Duration) -> String {
    let rate = done as f64 / elapsed.as_secs_f64().max(1e-9);
    let left = duration_in_words(total.saturating_sub(done) as f64 / rate);
    format!("features of {what}: {done} of {total} images, {rate:.1} images/s, {left} left")
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;

    /// Sees two bytes of each image, and counts how often.
    fn bytes(weights_sha256: &str) -> (Extractor, Rc<Cell<usize>>) {
        let calls = Rc::new(Cell::new(0));
        let counted = calls.clone();
        let extract = move |images: &Chunk| -> Result<Extracted> {
            counted.set(counted.get() + 1);
            let values: Vec<f32> = images.images().flat_map(|it| [it[0].into(), it[1].into()]).collect();
            let logits = Some(Rows { values: values.clone(), size: 2 });
            Ok(Extracted { features: Rows { values, size: 2 }, spatial: None, logits })
        };
        let (name, weights_sha256) = ("bytes".to_owned(), weights_sha256.to_owned());
        (Extractor { name, weights_sha256, class_names: &[], extract: Box::new(extract) }, calls)
    }

    #[test]
    fn features_are_made_once_and_come_back_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(&folder.path().join("new/features")).unwrap();
        let chunk = Chunk { height: 2, width: 1, pixels: (0..24).collect() };
        let (extractor, calls) = bytes("a");
        let made = cache.features(&extractor, &chunk).unwrap();
        assert_eq!(made.features.values.len(), 4 * made.features.size);
        assert_eq!((cache.features(&extractor, &chunk).unwrap(), calls.get()), (made, 1));
        // Other weights, other sizes of the same bytes: other features.
        let (other, other_calls) = bytes("b");
        cache.features(&other, &chunk).unwrap();
        cache.features(&extractor, &Chunk { height: 1, width: 2, ..chunk.clone() }).unwrap();
        assert_eq!((other_calls.get(), calls.get()), (1, 2));
    }

    #[test]
    fn damaged_features_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let chunk = Chunk { height: 1, width: 1, pixels: vec![1, 2, 3] };
        let (extractor, _) = bytes("a");
        cache.features(&extractor, &chunk).unwrap();
        let path = folder.path().join(format!("{}.npz", name(&extractor, &chunk)));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let message = format!("{:#}", cache.features(&extractor, &chunk).unwrap_err());
        assert!(message.contains("delete the file") && message.contains(".npz"), "{message}");
        write_npz(&path, &[("features", &[2, 1], ArrayData::F32(&[0.0, 1.0]))]).unwrap();
        assert!(cache.features(&extractor, &chunk).is_err());
        std::fs::write(folder.path().join("file"), b"").unwrap();
        assert!(Cache::open(&folder.path().join("file/below")).is_err());
    }

    #[test]
    fn lines_say_rate_and_time_left() {
        let line = |done, seconds| line("samples", done, 300, Duration::from_secs(seconds));
        assert_eq!(line(100, 50), "features of samples: 100 of 300 images, 2.0 images/s, 1 min 40 s left");
        assert!(line(0, 0).ends_with("unknown time left"));
        assert!(line(400, 1).ends_with("0 s left"));
    }
}
