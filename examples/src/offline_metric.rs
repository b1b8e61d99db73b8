//! A metric that needs no download: what the small classifier sees in images.
//!
//! The Fréchet distance of its features to those of all training photos, and the share of images whose class it
//! finds likeliest. Both compare this project's images with each other, and with nothing measured elsewhere.

use std::{fmt, path::Path};

use anyhow::{Context, Result};
use candle_core::{D, Tensor};
use ddt_adapters::{Decode, to_rgb8};
use ddt_data::Rgb8;
use ddt_files::npz::{ArrayData, write_npz};
use ddt_metrics::{Features, Moments, Statistics, frechet_distance};
use ddt_model::{SampleOptions, VelocityNetwork, sample};
use ddt_train::{ImageSettings, Photos, pixels as to_pixels};
use serde::{Deserialize, Serialize};

use crate::{
    classifier::network::{Classifier, FEATURES, SIDE},
    evaluate::reference::ImageInput,
    generate::{Interrupted, Item},
    progress::{Cancel, Counting},
};

/// Images that are drawn and looked at together.
const BATCH: usize = 100;

/// What was measured of a set of images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Fréchet distance to the training photos, of the classifier's features.
    pub distance: f64,
    /// Share of images whose class the classifier finds likeliest.
    pub accuracy: f64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "distance {:.4}, {:.1} % right", self.distance, 100.0 * self.accuracy)
    }
}

/// What images are drawn with.
#[derive(Clone, Copy)]
pub struct Painter<'a> {
    /// Noise to latents.
    pub network: &'a dyn VelocityNetwork,
    /// Latents to pixels.
    pub decoder: &'a dyn Decode,
    /// The noise of some images.
    pub noise: &'a dyn Fn(&[Item]) -> Result<Tensor>,
}

/// The classifier, and what it sees in all training photos.
pub struct OfflineMetric<'a> {
    photos: &'a Path,
    cancel: &'a Cancel,
    classifier: Classifier,
    reference: Statistics,
}

impl<'a> OfflineMetric<'a> {
    /// Looks at the training photos: those of the folder `train` in `photos`, of class folders. What is seen of them
    /// is kept in the folder `keep`, under a name that says which photos and which classifier, of hash `sha256`.
    ///
    /// # Errors
    ///
    /// Photos that cannot be read, a folder that cannot be written; [`Interrupted`].
    pub fn new(
        photos: &'a Path,
        (classifier, sha256): (Classifier, &str),
        keep: &Path,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let identity = open(photos, "train")?.folder().identity()?;
        let start = |hash: &str| hash.chars().take(12).collect::<String>();
        let kept = keep.join(format!("train-{}-{}.npz", start(&identity), start(sha256)));
        // One that is damaged is made again.
        let found = ImageInput::open(&kept).ok().and_then(|it| it.statistics);
        let reference = match found.filter(|it| it.size() == FEATURES) {
            Some(it) => it,
            None => {
                let mut sums = Sums::new()?;
                for_photos(photos, "train", usize::MAX, cancel, |pixels, labels| {
                    sums.add(&classifier, pixels, labels)
                })?;
                let made = sums.moments.finish()?;
                let mean: (_, &[usize], _) = ("mu", &[FEATURES], ArrayData::F64(made.mean()));
                let spread: (_, &[usize], _) =
                    ("sigma", &[FEATURES, FEATURES], ArrayData::F64(made.covariance()));
                write_npz(&kept, &[mean, spread])?;
                made
            }
        };
        Ok(Self { photos, cancel, classifier, reference })
    }

    /// Measures test photos, evenly spread over the classes, after `change`.
    ///
    /// # Errors
    ///
    /// Photos that cannot be read, whatever `change` says; [`Interrupted`].
    pub fn photos(&self, count: usize, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Seen> {
        let mut sums = Sums::new()?;
        for_photos(self.photos, "test", count, self.cancel, |pixels, labels| {
            sums.add(&self.classifier, &rounded(&change(pixels)?)?, labels)
        })?;
        self.finish(sums)
    }

    /// Draws and measures images.
    ///
    /// # Errors
    ///
    /// A network that gives what is no number; [`Interrupted`].
    pub fn drawn(&self, painter: Painter<'_>, items: &[Item], options: &SampleOptions<'_>) -> Result<Seen> {
        let mut sums = Sums::new()?;
        let mut progress = Counting::start("drawing", items.len() as u64);
        for (i, items) in items.chunks(BATCH).enumerate() {
            let labels: Vec<u32> = items.iter().map(|it| it.label).collect();
            let noise = (painter.noise)(items)?;
            let sampled = sample(painter.network, &noise, &labels, options, &mut |_| self.cancel.flow());
            if self.cancel.is_requested() {
                return Err(Interrupted.into());
            }
            let pixels = painter.decoder.decode(&sampled?.latents)?;
            sums.add(&self.classifier, &rounded(&pixels)?, &labels)?;
            progress.reached(((i + 1) * BATCH) as u64);
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
        Ok(Self { moments: Moments::new(FEATURES)?, right: 0, count: 0 })
    }

    fn add(&mut self, classifier: &Classifier, pixels: &Tensor, labels: &[u32]) -> Result<()> {
        let seen = classifier.forward(pixels)?;
        let features: Vec<f32> = seen.features.flatten_all()?.to_vec1()?;
        self.moments.push(Features::new(&features, FEATURES)?)?;
        let found: Vec<u32> = seen.logits.argmax(D::Minus1)?.to_vec1()?;
        self.right += found.iter().zip(labels).filter(|it| it.0 == it.1).count();
        self.count += labels.len();
        Ok(())
    }
}

/// Pixels as a file of images would have them: whole numbers of 0 to 255, in `[-1, 1]` again.
fn rounded(pixels: &Tensor) -> Result<Tensor> {
    let images = to_rgb8(pixels)?;
    let side = SIDE as u32;
    let images = images.into_iter().map(|bytes| Rgb8::new(side, side, bytes));
    Ok(to_pixels(&images.collect::<Result<Vec<_>, _>>()?)?)
}

fn open(photos: &Path, split: &str) -> Result<Photos> {
    let images = ImageSettings::plain(photos.join(split), SIDE as u32);
    Photos::open(&images.train, &images).context("--photos")
}

/// Hands out photos of a split, evenly spread over it.
fn for_photos(
    photos: &Path,
    split: &str,
    count: usize,
    cancel: &Cancel,
    mut take: impl FnMut(&Tensor, &[u32]) -> Result<()>,
) -> Result<()> {
    let photos = open(photos, split)?;
    let len = photos.folder().len();
    let count = count.min(len);
    let mut loader = photos.load((0..count).map(move |i| i * len / count))?;
    let mut progress = Counting::start("looking at photos", count as u64);
    let mut done = 0;
    while done < count {
        if cancel.is_requested() {
            return Err(Interrupted.into());
        }
        let samples = loader.by_ref().take(BATCH).collect::<Result<Vec<_>, _>>()?;
        let labels: Vec<u32> = samples.iter().filter_map(|it| it.label).collect();
        done += samples.len();
        let images: Vec<Rgb8> = samples.into_iter().map(|it| it.pixels).collect();
        take(&to_pixels(&images)?, &labels)?;
        progress.reached(done as u64);
    }
    Ok(())
}
