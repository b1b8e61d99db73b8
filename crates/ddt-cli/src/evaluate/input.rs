//! The two sides of a comparison: images of an npz file or a folder, a chunk of equally large ones at a time, or
//! statistics of images.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use ddt::files::npz::NpzFile;
use ddt_data::{DataError, ImageFolder, Limits, Rgb8, read_rgb8};
use ddt_metrics::Statistics;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::terminal::Terminal;

/// Images of a chunk at most, and bytes of their pixels: the work that is lost when the program is stopped, and its
/// memory.
const CHUNK_IMAGES: usize = 128;
const CHUNK_BYTES: usize = 64 << 20;
/// Files that are decoded at once.
const DECODED_AT_ONCE: usize = 8;
/// Pixels of an image at most.
const MAX_PIXELS: u64 = 1 << 24;

/// A file or folder of either side.
#[derive(Debug)]
pub(super) struct Input {
    /// The images; a file of statistics has none.
    pub(super) images: Option<Images>,
    /// Mean and covariance of features: `mu` and `sigma` of the file.
    pub(super) statistics: Option<Statistics>,
    /// The same of spatial features: `mu_s` and `sigma_s`.
    pub(super) spatial: Option<Statistics>,
}

impl Input {
    /// Looks at a file or folder, and says what it holds and what is left out; of images only the header is read.
    pub(super) fn open(path: &Path, terminal: &Terminal) -> Result<Self> {
        let kind = std::fs::metadata(path).with_context(|| {
            format!("cannot read {}; expected an npz file or a folder of images", path.display())
        })?;
        if kind.is_dir() {
            return Ok(Self {
                images: Some(Images::folder(path, terminal)?),
                statistics: None,
                spatial: None,
            });
        }
        let file = NpzFile::open(path)?;
        let pair = |mean, covariance| read_statistics(&file, mean, covariance);
        let (statistics, spatial) = (pair("mu", "sigma")?, pair("mu_s", "sigma_s")?);
        if statistics.is_none() && !file.contains("arr_0") {
            let names: Vec<&str> = file.names().collect();
            bail!(
                "expected arr_0 (images), or mu and sigma (statistics) in {}, got {}",
                path.display(),
                if names.is_empty() { "no arrays".to_owned() } else { names.join(", ") }
            );
        }
        let mut found = Vec::new();
        found.extend(statistics.is_some().then_some("statistics of features"));
        found.extend(spatial.is_some().then_some("statistics of spatial features"));
        if !found.is_empty() {
            terminal.say(format!("{}: {}", path.display(), found.join(", ")));
        }
        let images = file.contains("arr_0").then(|| Images::npz(file, terminal)).transpose()?;
        Ok(Self { images, statistics, spatial })
    }
}

/// Mean and covariance, if the file has both.
fn read_statistics(file: &NpzFile, mean: &str, covariance: &str) -> Result<Option<Statistics>> {
    if !file.contains(mean) || !file.contains(covariance) {
        return Ok(None);
    }
    let (means, covariances) = (file.array(mean)?, file.array(covariance)?);
    means.expect_shape(&[None])?;
    let size = means.shape()[0];
    covariances.expect_shape(&[Some(size), Some(size)])?;
    let named = || format!("{mean} and {covariance} in {}", file.path().display());
    let statistics = Statistics::new(means.f64_values()?, covariances.f64_values()?, None);
    Ok(Some(statistics.with_context(named)?))
}

/// Some images of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Rows of an image.
    pub(super) height: usize,
    /// Columns of an image.
    pub(super) width: usize,
    /// Red, green and blue bytes, image by image, row by row.
    pub(super) pixels: Vec<u8>,
}

impl Chunk {
    /// Number of images.
    pub(super) fn num_images(&self) -> usize {
        self.pixels.len() / self.image_bytes()
    }

    /// The pixels of each image.
    pub(super) fn images(&self) -> std::slice::ChunksExact<'_, u8> {
        self.pixels.chunks_exact(self.image_bytes())
    }

    /// SHA-256 of sizes and pixels.
    pub(super) fn sha256(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(format!("{} x {} x 3\n", self.height, self.width));
        hasher.update(&self.pixels);
        hasher.finalize().into()
    }

    fn image_bytes(&self) -> usize {
        (self.height * self.width * 3).max(1)
    }
}

/// Images on disk.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) path: PathBuf,
    pub(super) num_images: usize,
    /// Height and width where the file states one for all.
    pub(super) size: Option<(usize, usize)>,
    /// The label of each image, where that is known.
    pub(super) labels: Option<Vec<i64>>,
    /// Names of labels, where they are known.
    pub(super) class_names: BTreeMap<i64, String>,
    /// Files or arrays that are not measured, in words.
    pub(super) left_out: Option<String>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Npz(NpzFile),
    Folder(ImageFolder),
}

impl Images {
    /// The images `arr_0` of an npz file; integers of the same number in `arr_1` are their labels.
    fn npz(file: NpzFile, terminal: &Terminal) -> Result<Self> {
        let array = file.array("arr_0")?;
        array.expect_dtype(DType::U8)?;
        array.expect_shape(&[None, None, None, Some(3)])?;
        let (path, shape) = (file.path().to_owned(), array.shape().to_vec());
        let (num_images, height, width) = (shape[0], shape[1], shape[2]);
        ensure!(
            num_images > 0 && height > 0 && width > 0,
            "expected at least one image of at least one pixel in {}, got {num_images} of {height} x {width}",
            path.display()
        );
        ensure!(
            (height as u64).saturating_mul(width as u64) <= MAX_PIXELS,
            "{}: expected images of at most {MAX_PIXELS} pixels, got {height} x {width}",
            path.display()
        );
        let labels = match file.contains("arr_1").then(|| file.array("arr_1")).transpose()? {
            Some(it) if it.shape() == [num_images] => it.i64_values().ok(),
            _ => None,
        };
        let used = |name: &&str| {
            let labels = *name == "arr_1" && labels.is_some();
            labels || ["arr_0", "mu", "sigma", "mu_s", "sigma_s"].contains(name)
        };
        let unused: Vec<&str> = file.names().filter(|name| !used(name)).collect();
        let left_out = (!unused.is_empty()).then(|| format!("left out arrays {}", unused.join(", ")));
        let said = if labels.is_some() { "with labels" } else { "without labels" };
        let rest = left_out.as_ref().map(|it| format!("; {it}")).unwrap_or_default();
        terminal.say(format!(
            "{}: {num_images} images of {width} x {height} pixels, {said}{rest}",
            path.display()
        ));
        let (size, class_names) = (Some((height, width)), BTreeMap::new());
        drop(array);
        Ok(Self { path, num_images, size, labels, class_names, left_out, source: Source::Npz(file) })
    }

    /// The images in a folder, or in the class folders in it.
    fn folder(path: &Path, terminal: &Terminal) -> Result<Self> {
        let folder = ImageFolder::detect(path)?;
        let report = folder.report();
        terminal.say(format!("{}: {report}", path.display()));
        let labels = (0..folder.len()).map(|at| Ok(folder.label(at)?.map(i64::from)));
        let labels = labels.collect::<Result<Option<Vec<i64>>, DataError>>()?;
        let named = folder.classes().iter().map(|it| (i64::from(it.label), it.folder.clone()));
        let left_out = report.to_string().split_once("; ").map(|it| it.1.to_owned());
        Ok(Self {
            path: path.to_owned(),
            num_images: folder.len(),
            size: None,
            labels,
            class_names: named.collect(),
            left_out,
            source: Source::Folder(folder),
        })
    }

    /// Hands out all images in order, in chunks that depend on the images only.
    pub(super) fn for_each_chunk(&self, mut take: impl FnMut(Chunk) -> Result<()>) -> Result<()> {
        match &self.source {
            Source::Npz(file) => {
                let (height, width) = self.size.context("an archive without a size")?;
                let mut rows = file.array("arr_0")?.rows(0..self.num_images)?;
                let at_once = images_at_once(rows.row_bytes());
                while rows.left() > 0 {
                    let mut pixels = vec![0; at_once.min(rows.left()) * rows.row_bytes()];
                    rows.read(&mut pixels)?;
                    take(Chunk { height, width, pixels })?;
                }
                Ok(())
            }
            Source::Folder(folder) => {
                let mut joined = None;
                for first in (0..folder.len()).step_by(DECODED_AT_ONCE) {
                    let group = first..folder.len().min(first + DECODED_AT_ONCE);
                    let images: Vec<Result<Rgb8>> =
                        group.into_par_iter().map(|at| decode(&folder.path(at)?)).collect();
                    for image in images {
                        if let Some(full) = join(&mut joined, image?) {
                            take(full)?;
                        }
                    }
                }
                joined.map_or(Ok(()), take)
            }
        }
    }
}

fn decode(path: &Path) -> Result<Rgb8> {
    let image = read_rgb8(path, &Limits { max_pixels: MAX_PIXELS, ..Limits::default() })?;
    ensure!(image.width() > 0 && image.height() > 0, "{} has no pixels", path.display());
    Ok(image)
}

fn images_at_once(image_bytes: usize) -> usize {
    (CHUNK_BYTES / image_bytes.max(1)).clamp(1, CHUNK_IMAGES)
}

/// Adds an image to the chunk that waits; gives the chunk before it if that is full or of another size.
fn join(waiting: &mut Option<Chunk>, image: Rgb8) -> Option<Chunk> {
    let (height, width) = (image.height() as usize, image.width() as usize);
    let fits = |it: &Chunk| {
        (it.height, it.width) == (height, width) && it.num_images() < images_at_once(it.image_bytes())
    };
    match waiting {
        Some(chunk) if fits(chunk) => {
            chunk.pixels.extend_from_slice(image.as_bytes());
            None
        }
        other => other.replace(Chunk { height, width, pixels: image.into_bytes() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: u32, height: u32, shade: u8) -> Rgb8 {
        Rgb8::new(width, height, vec![shade; (width * height * 3) as usize]).unwrap()
    }

    #[test]
    fn chunks_have_images_of_one_size() {
        let mut joined = None;
        assert_eq!(join(&mut joined, image(2, 3, 1)), None);
        assert_eq!(join(&mut joined, image(2, 3, 2)), None);
        let first = join(&mut joined, image(3, 2, 3)).unwrap();
        assert_eq!((first.num_images(), first.height, first.width), (2, 3, 2));
        assert_eq!(first.images().nth(1).unwrap(), [2; 18]);
        let last = joined.unwrap();
        assert_ne!(last.sha256(), Chunk { height: 3, width: 2, ..last.clone() }.sha256());
        let mut joined = None;
        let full = (0..=CHUNK_IMAGES).find_map(|_| join(&mut joined, image(1, 1, 0))).unwrap();
        assert_eq!(full.num_images(), CHUNK_IMAGES);
        assert_eq!(images_at_once(usize::MAX), 1);
    }
}
