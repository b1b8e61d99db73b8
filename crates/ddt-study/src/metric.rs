//! A metric that needs no download: the classifier's view of images.
//!
//! The Fréchet distance of its features to those of all training photos, and the share of images whose class it
//! finds likeliest. Both compare this project's images with each other, and with nothing measured elsewhere.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use candle_core::{D, Tensor};
use ddt::{
    Image, Pipeline,
    adapters::to_rgb8,
    files::npz::{ArrayData, NpzFile, write_npz},
    flow::NoiseSource,
    model::SampleOptions,
};
use ddt_data::Rgb8;
use ddt_metrics::{Features, Moments, Statistics, frechet_distance};
use ddt_train::{ImageSettings, Photos, pixels};
use serde::{Deserialize, Serialize};

use crate::{
    classifier::Classifier,
    study::{News, OnNews, tell},
};

/// Images that are generated and classified at once.
const BATCH: usize = 100;

/// Length of the last sampling step of measured images, as in the published results.
pub(crate) const LAST_STEP: f64 = 0.04;

/// The measure of a set of images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Fréchet distance of the classifier's features to those of the training photos.
    pub distance: f64,
    /// Share of images whose class the classifier finds likeliest.
    pub accuracy: f64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "distance {:.4}, {:.1} % right", self.distance, 100.0 * self.accuracy)
    }
}

/// The classifier, and its view of all training photos.
pub struct OfflineMetric {
    photos: PathBuf,
    classifier: Classifier,
    reference: Statistics,
}

impl OfflineMetric {
    /// Classifies the training photos: those of the folder `train` in `photos`, of class folders.
    ///
    /// Their statistics are cached in the folder `cache`, under a name that says which photos and which classifier,
    /// of hash `sha256`.
    ///
    /// # Errors
    /// Photos that cannot be read, a folder that cannot be written; [`ddt::Error::Cancelled`].
    pub fn new(
        photos: &Path,
        classifier: Classifier,
        sha256: &str,
        cache: &Path,
        on_news: &mut OnNews<'_>,
    ) -> Result<Self> {
        let identity = open(photos, "train")?.folder().identity()?;
        let start = |hash: &str| hash.chars().take(12).collect::<String>();
        let cached = cache.join(format!("train-{}-{}.npz", start(&identity), start(sha256)));
        // A damaged one is made again.
        let reference = match read_statistics(&cached).ok() {
            Some(it) => it,
            None => {
                let mut sums = Sums::new()?;
                for_photos(photos, "train", usize::MAX, on_news, |pixels, labels| {
                    sums.add(&classifier, pixels, labels)
                })?;
                let made = sums.moments.finish()?;
                write_statistics(&cached, &made)?;
                made
            }
        };
        Ok(Self { photos: photos.to_owned(), classifier, reference })
    }

    /// Measures test photos, evenly spread over the classes, after `change`.
    ///
    /// # Errors
    /// Photos that cannot be read, errors of `change`; [`ddt::Error::Cancelled`].
    pub fn photos(
        &self,
        count: usize,
        on_news: &mut OnNews<'_>,
        change: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Seen> {
        let mut sums = Sums::new()?;
        for_photos(&self.photos, "test", count, on_news, |pixels, labels| {
            sums.add(&self.classifier, &rounded(&change(pixels)?)?, labels)
        })?;
        self.finish(sums)
    }

    /// Generates images from the noise of seed 0, and measures them.
    ///
    /// # Errors
    /// Images of another size than the classifier's; a network that produced NaN or infinity;
    /// [`ddt::Error::Cancelled`].
    pub fn generated(
        &self,
        pipeline: &Pipeline,
        images: &[Image],
        options: &SampleOptions<'_>,
        on_news: &mut OnNews<'_>,
    ) -> Result<Seen> {
        let (work, total) = ("generating images", images.len() as u64);
        let mut sums = Sums::new()?;
        let mut done = 0;
        for batch in images.chunks(BATCH) {
            let noise = pipeline.noise(batch, 0, NoiseSource::Counter)?;
            let sampled = pipeline.sample_with(batch, &noise, options, &mut |_| {
                on_news(News::Progress { work, done, total })
            })?;
            let labels: Vec<u32> = batch.iter().map(|it| it.label).collect();
            let decoded = pipeline.decode(&sampled.latents)?;
            sums.add(&self.classifier, &pixels(&decoded)?, &labels)?;
            done += batch.len() as u64;
            tell(on_news, News::Progress { work, done, total })?;
        }
        self.finish(sums)
    }

    fn finish(&self, sums: Sums) -> Result<Seen> {
        let accuracy = sums.right as f64 / sums.count.max(1) as f64;
        let distance = frechet_distance(&sums.moments.finish()?, &self.reference)?.distance;
        Ok(Seen { distance, accuracy })
    }
}

/// Sums over a set of images.
struct Sums {
    moments: Moments,
    right: usize,
    count: usize,
}

impl Sums {
    fn new() -> Result<Self> {
        Ok(Self { moments: Moments::new(Classifier::FEATURES)?, right: 0, count: 0 })
    }

    fn add(&mut self, classifier: &Classifier, pixels: &Tensor, labels: &[u32]) -> Result<()> {
        let seen = classifier.forward(pixels)?;
        let features: Vec<f32> = seen.features.flatten_all()?.to_vec1()?;
        self.moments.push(Features::new(&features, Classifier::FEATURES)?)?;
        let found: Vec<u32> = seen.logits.argmax(D::Minus1)?.to_vec1()?;
        self.right += found.iter().zip(labels).filter(|it| it.0 == it.1).count();
        self.count += labels.len();
        Ok(())
    }
}

/// Pixels as a file of images has them: whole numbers of 0 to 255, in [-1, 1] again.
fn rounded(values: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = values.dims4()?;
    let images = to_rgb8(values)?.into_iter();
    let images = images.map(|bytes| Rgb8::new(width as u32, height as u32, bytes));
    Ok(pixels(&images.collect::<Result<Vec<_>, _>>()?)?)
}

fn open(photos: &Path, split: &str) -> Result<Photos> {
    let images = ImageSettings::plain(photos.join(split), Classifier::SIDE as u32);
    Photos::open(&images.train, &images).context("--photos")
}

/// Hands out photos of a split, evenly spread over it.
fn for_photos(
    photos: &Path,
    split: &str,
    count: usize,
    on_news: &mut OnNews<'_>,
    mut take: impl FnMut(&Tensor, &[u32]) -> Result<()>,
) -> Result<()> {
    let photos = open(photos, split)?;
    let len = photos.folder().len();
    let count = count.min(len);
    let mut loader = photos.load((0..count).map(move |i| i * len / count))?;
    let mut done = 0;
    while done < count {
        let (work, total) = ("classifying photos", count as u64);
        tell(on_news, News::Progress { work, done: done as u64, total })?;
        let samples = loader.by_ref().take(BATCH).collect::<Result<Vec<_>, _>>()?;
        let labels: Vec<u32> = samples.iter().filter_map(|it| it.label).collect();
        done += samples.len();
        let images: Vec<Rgb8> = samples.into_iter().map(|it| it.pixels).collect();
        take(&pixels(&images)?, &labels)?;
    }
    Ok(())
}

fn write_statistics(path: &Path, statistics: &Statistics) -> Result<()> {
    const SIZE: usize = Classifier::FEATURES;
    let mean: (_, &[usize], _) = ("mu", &[SIZE], ArrayData::F64(statistics.mean()));
    let covariance: (_, &[usize], _) = ("sigma", &[SIZE, SIZE], ArrayData::F64(statistics.covariance()));
    Ok(write_npz(path, &[mean, covariance])?)
}

fn read_statistics(path: &Path) -> Result<Statistics> {
    let file = NpzFile::open(path)?;
    let (mean, covariance) = (file.array("mu")?, file.array("sigma")?);
    mean.expect_shape(&[Some(Classifier::FEATURES)])?;
    covariance.expect_shape(&[Some(Classifier::FEATURES); 2])?;
    Ok(Statistics::new(mean.f64_values()?, covariance.f64_values()?, None)?)
}
